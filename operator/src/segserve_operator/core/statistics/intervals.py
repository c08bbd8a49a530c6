"""Intervals of what was counted."""

from __future__ import annotations

import math
from typing import Final

Z_95: Final = 1.959963984540054
"""Standard deviations of the normal distribution on each side of its mean that hold 95 % of it."""


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a share that was `count` of `total` (Wilson 1927); all of 0 to 1 of none.

    Unlike the one by standard deviations it holds for few, and where none or all were counted.
    """
    if not total:
        return 0.0, 1.0
    share, scale = count / total, 1 + Z_95**2 / total
    middle = (share + Z_95**2 / (2 * total)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
