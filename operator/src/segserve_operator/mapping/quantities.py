"""Quantities in Kubernetes notation: `500m`, `1Gi`, `2`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_UNITS: Final = {
    "m": Decimal("0.001"),
    **{unit: Decimal(1000 ** (power + 1)) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024 ** (power + 1)) for power, unit in enumerate("KMGTPE")},
}


def number(amount: Any) -> Decimal | None:
    """Return a quantity as a number; None for text in any other notation."""
    match = _QUANTITY.fullmatch(str(amount))
    return Decimal(match[1]) * _UNITS.get(match[2], Decimal(1)) if match is not None else None
