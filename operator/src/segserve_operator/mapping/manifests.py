"""Readers of stored manifests that validate nothing; imports are light, for short commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from segserve_common.kube.names import DOMAIN

_OWN: Final = f"{DOMAIN}/"


def annotations_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return a resource's annotations with segserve's prefix."""
    annotations = manifest["metadata"].get("annotations") or {}
    return {key: value for key, value in annotations.items() if key.startswith(_OWN)}


def named_models(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the models that a stored model uses as its second network, by the field of the name.

    The spec may be invalid: what is not a name is left out.
    """
    named = {}
    for field in ("instances", "cascade.light"):
        part: Any = manifest["spec"]
        for key in (*field.split("."), "model"):
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, str):
            named[field] = part
    return named
