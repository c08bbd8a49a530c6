"""Brings the digests in zoo.yaml up to date with the networks in weights/: python -m examples.zoo.refresh."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from examples.zoo.training import HERE
from segserve_common.files import file_sha256
from segserve_operator.api.documents import read_documents, with_strings

if TYPE_CHECKING:
    from pathlib import Path

    from segserve_operator.api.documents import Path as Place

RESOURCES = HERE / "zoo.yaml"


def with_digests(text: str, folder: Path) -> str:
    """Return the text of zoo.yaml, whose files lie in `folder`, with its digests right and nothing else changed."""
    digests: list[dict[Place, str]] = []
    for document in read_documents(text, ""):
        artifact = folder / document.value["spec"]["artifact"]["uri"]
        run = json.loads(artifact.with_suffix(".json").read_text())
        digests.append(
            {
                ("spec", "artifact", "sha256"): file_sha256(artifact),
                ("spec", "artifact", "provenance", "datasetSha256"): run["datasetSha256"],
            }
        )
    return with_strings(text, *digests)


if __name__ == "__main__":
    RESOURCES.write_text(with_digests(RESOURCES.read_text(), HERE))
