"""The models that a stored model uses as its second network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def named_models(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the models that a stored model uses as its second network, by the field of the name.

    The spec may be invalid: what is no name is left out.
    """
    named = {}
    for field in ("instances", "cascade.light"):
        part: Any = manifest["spec"]
        for key in (*field.split("."), "model"):
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, str):
            named[field] = part
    return named
