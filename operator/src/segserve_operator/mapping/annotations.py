"""A resource's annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from segserve_common.kube.names import DOMAIN

_OWN: Final = f"{DOMAIN}/"


def annotations_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return a resource's annotations with segserve's prefix."""
    annotations = manifest["metadata"].get("annotations") or {}
    return {key: value for key, value in annotations.items() if key.startswith(_OWN)}
