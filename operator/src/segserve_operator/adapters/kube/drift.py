"""Whether an object of the API has all that a manifest says, whatever else others or the API server put into it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

_AMOUNTS: Final = frozenset({"limits", "requests"})
_AMOUNT: Final = frozenset({"sizeLimit"})
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_UNITS: Final = {
    "m": Decimal("0.001"),
    **{unit: Decimal(1000 ** (power + 1)) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024 ** (power + 1)) for power, unit in enumerate("KMGTPE")},
}


def covers(live: Any, desired: Any) -> bool:
    """Tell whether `live`, as the API sends it, has all that `desired` says. Both are JSON values.

    Fields that `desired` does not name may have any value; lists must agree in length and order; a field that is
    absent equals an empty one, which the API server does not always store; amounts are compared as numbers.

    What an earlier apply could not bring about (another writer's own items of a list stay there) is brought about
    by a merge patch of the whole manifest.
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
    return live == desired or (live is not None and desired is not None and _number(live) == _number(desired))


def _number(amount: Any) -> Decimal | str:
    """Return an amount as a number; one that is written in another way as its text."""
    found = _QUANTITY.fullmatch(str(amount))
    if found is None:
        return str(amount)
    return Decimal(found[1]) * _UNITS.get(found[2], Decimal(1))
