"""Brings golden sets and the digests in model.yaml and rollout.yaml up to date with the networks beside them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import make_golden
import yaml
from in_process import RESOURCES

from segserve_builder.sources.folder import folder_digest

if TYPE_CHECKING:
    from pathlib import Path

Place = tuple[str, ...]
ARTIFACT: Place = ("spec", "artifact", "sha256")
DATASET: Place = ("spec", "artifact", "provenance", "datasetSha256")
GOLDEN: Place = ("spec", "golden", "sha256")


def digests_of(resource: dict[str, dict[str, dict[str, str]]], folder: Path) -> dict[Place, str]:
    """Return what the digests of one resource, as plain YAML, have to be; its files lie in `folder`."""
    artifact = folder / resource["spec"]["artifact"]["uri"]
    run = json.loads(artifact.with_suffix(".json").read_text())
    return {
        ARTIFACT: hashlib.sha256(artifact.read_bytes()).hexdigest(),
        DATASET: run["datasetSha256"],
        GOLDEN: folder_digest(folder / resource["spec"]["golden"]["uri"]),
    }


def with_digests(text: str, folder: Path) -> str:
    """Return the text of a resource file with its digests brought up to date, and nothing else changed."""
    edits: list[tuple[int, int, str]] = []
    for node, resource in zip(yaml.compose_all(text), yaml.safe_load_all(text), strict=True):
        for place, digest in digests_of(resource, folder).items():
            scalar = _at(node, place)
            edits.append((scalar.start_mark.index, scalar.end_mark.index, f'"{digest}"'))
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _at(node: yaml.Node, place: Place) -> yaml.Node:
    for key in place:
        node = next(value for name, value in node.value if name.value == key)
    return node


def main() -> None:
    """Write the golden sets, then the digests."""
    make_golden.main()
    for path in (RESOURCES, RESOURCES.with_name("rollout.yaml")):
        path.write_text(with_digests(path.read_text(), path.parent))


if __name__ == "__main__":
    main()
