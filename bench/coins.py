"""Variants of the example's models, with other names or fields."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from bench.platform import MODELS


def variant(*, model: str = "coins", name: str | None = None, **spec: object) -> dict[str, Any]:
    """Return one of the example's models with some fields of its spec replaced, and optionally another name."""
    documents: Iterable[dict[str, Any]] = yaml.safe_load_all(MODELS.read_text())
    document = next(each for each in documents if each["metadata"]["name"] == model)
    document["metadata"]["name"] = name or model
    for part in ("artifact", "golden"):
        document["spec"][part]["uri"] = (MODELS.parent / document["spec"][part]["uri"]).resolve().as_uri()
    document["spec"] |= spec
    return document


def with_output(network: Path, output: str, target: Path) -> Path:
    """Write a network whose tensor of this name is an output too, as an embedding must be, and return its file."""
    import onnx

    changed = onnx.load(network)
    changed.graph.output.append(next(each for each in changed.graph.value_info if each.name == output))
    onnx.save(changed, target)
    return target


def write(path: Path, *models: dict[str, Any]) -> Path:
    """Write models into one resource file and return its path."""
    path.write_text(yaml.safe_dump_all(models))
    return path
