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


def write(path: Path, *models: dict[str, Any]) -> Path:
    """Write models into one resource file and return its path."""
    path.write_text(yaml.safe_dump_all(models))
    return path
