"""JSON merge patches (RFC 7396) from one value to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def merge_patch(present: Mapping[str, Any], desired: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that makes `present` equal to `desired`, which has no nulls; empty if they are equal."""
    # In a merge patch null removes a field.
    patch: dict[str, Any] = dict.fromkeys(present.keys() - desired.keys())
    for key, value in desired.items():
        if key not in present:
            patch[key] = value
        elif isinstance(value, dict) and isinstance(present[key], dict):
            if inner := merge_patch(present[key], value):
                patch[key] = inner
        elif present[key] != value:
            patch[key] = value
    return patch
