"""A merge patch makes one value of another, and is empty where they are equal."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.adapters.kube.children import merge_patch

LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.lists(st.integers(), max_size=2))
VALUES: Any = st.recursive(LEAVES, lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3), max_leaves=8)
OBJECTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=4)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(OBJECTS, OBJECTS)
def test_the_patch_leads_from_one_to_the_other(present: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert merged(present, merge_patch(present, wanted)) == wanted


@given(OBJECTS)
def test_equal_values_need_no_patch(value: dict[str, Any]) -> None:
    assert merge_patch(value, value) == {}
