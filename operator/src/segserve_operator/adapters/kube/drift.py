"""Comparison of live objects with manifests, ignoring fields that others or the API server added."""

from __future__ import annotations

from typing import Any, Final

from segserve_operator.mapping.quantities import number

# The API server may rewrite quantities: 1000m is stored as 1.
_AMOUNTS: Final = frozenset({"limits", "requests"})
_AMOUNT: Final = frozenset({"sizeLimit"})


def covers(live: Any, desired: Any) -> bool:
    """Return whether `live`, as the API sends it, has every field of `desired`. Both are JSON values.

    Fields that `desired` does not name may have any value; lists must agree in length and order; an absent field
    equals an empty one, since the API server does not store all empty ones; quantities are compared as numbers.

    A server-side apply may leave a difference (another writer's items of a list stay there); a merge patch of the
    whole manifest removes it.
    """
    if not desired:
        return not live
    if isinstance(desired, dict):
        return isinstance(live, dict) and all(_field_covers(key, live.get(key), desired[key]) for key in desired)
    if isinstance(desired, list):
        return isinstance(live, list) and len(live) == len(desired) and all(map(covers, live, desired))
    return bool(live == desired)


def _field_covers(key: str, live: Any, desired: Any) -> bool:
    if key in _AMOUNTS and isinstance(desired, dict) and isinstance(live, dict):
        return all(_same_amount(live.get(name), amount) for name, amount in desired.items())
    if key in _AMOUNT:
        return _same_amount(live, desired)
    return covers(live, desired)


def _same_amount(live: Any, desired: Any) -> bool:
    return live == desired or (number(live) is not None and number(live) == number(desired))
