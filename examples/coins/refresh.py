"""Brings golden sets and the digests in model.yaml and rollout.yaml up to date with the networks beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import make_golden
from in_process import RESOURCES

from segserve_builder.sources.folder import folder_digest
from segserve_common.files import file_sha256
from segserve_operator.api.documents import read_documents, with_strings

if TYPE_CHECKING:
    from pathlib import Path

    from segserve_operator.api.documents import Path as Place


def digests_of(resource: dict[str, dict[str, dict[str, str]]], folder: Path) -> dict[Place, str]:
    """Return what the digests of one resource, as plain YAML, have to be; its files lie in `folder`."""
    artifact = folder / resource["spec"]["artifact"]["uri"]
    run = json.loads(artifact.with_suffix(".json").read_text())
    return {
        ("spec", "artifact", "sha256"): file_sha256(artifact),
        ("spec", "artifact", "provenance", "datasetSha256"): run["datasetSha256"],
        ("spec", "golden", "sha256"): folder_digest(folder / resource["spec"]["golden"]["uri"]),
    }


def with_digests(text: str, folder: Path) -> str:
    """Return the text of a resource file with its digests brought up to date, and nothing else changed."""
    return with_strings(text, *(digests_of(document.value, folder) for document in read_documents(text, "")))


def main() -> None:
    """Write the golden sets, then the digests."""
    make_golden.main()
    for path in (RESOURCES, RESOURCES.with_name("rollout.yaml")):
        path.write_text(with_digests(path.read_text(), path.parent))


if __name__ == "__main__":
    main()
