"""Brings the digests in zoo.yaml up to date with the networks in weights/: python -m examples.zoo.refresh."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import yaml

from examples.zoo.training import HERE

if TYPE_CHECKING:
    from pathlib import Path

RESOURCES = HERE / "zoo.yaml"
Place = tuple[str, ...]
ARTIFACT: Place = ("spec", "artifact", "sha256")
DATASET: Place = ("spec", "artifact", "provenance", "datasetSha256")


def with_digests(text: str, folder: Path) -> str:
    """Return the text of zoo.yaml, whose files lie in `folder`, with its digests right and nothing else changed."""
    edits: list[tuple[int, int, str]] = []
    for node, resource in zip(yaml.compose_all(text), yaml.safe_load_all(text), strict=True):
        artifact = folder / resource["spec"]["artifact"]["uri"]
        digests = {
            ARTIFACT: hashlib.sha256(artifact.read_bytes()).hexdigest(),
            DATASET: json.loads(artifact.with_suffix(".json").read_text())["datasetSha256"],
        }
        for place, digest in digests.items():
            scalar = _at(node, place)
            edits.append((scalar.start_mark.index, scalar.end_mark.index, f'"{digest}"'))
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _at(node: yaml.Node, place: Place) -> yaml.Node:
    for key in place:
        node = next(value for name, value in node.value if name.value == key)
    return node


if __name__ == "__main__":
    RESOURCES.write_text(with_digests(RESOURCES.read_text(), HERE))
