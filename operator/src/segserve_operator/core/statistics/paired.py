"""Paired test whether the candidate is worse on the same images: Student's t of the differences, once per revision.

Replaying the same images yields the same data, so there is one inspection and nothing to gain from bets. A few images
may all miss a rare case: a gain on one of a hundred that makes up for small losses on all others. The test therefore
adds one image on which the candidate gains as much as possible; its mean must be worse even then.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

FEWEST: Final = 3
"""Number of differences below which their spread is meaningless."""
LEAST_SPREAD: Final = 1e-6


def worse(differences: Floats, tolerance: float) -> float:
    """Return the log evidence (1 / p) that the mean of candidate - stable [n] is less than -`tolerance`.

    It assumes that means of n images are about normal; see `proved_worse`.
    """
    number = differences.size
    if number < FEWEST:
        return 0.0
    spread = max(float(differences.std(ddof=1)), LEAST_SPREAD)
    return _log_odds((-tolerance - float(differences.mean())) / (spread / math.sqrt(number)), number - 1)


def proved_worse(differences: Floats, stable: Floats, tolerance: float) -> float:
    """Return the same with one more image, on which the candidate gains the most that `stable` [n] (0 to 1) allows."""
    gain = float((1.0 - stable).max(initial=0.0))
    return worse(np.append(differences, gain), tolerance)


def _log_odds(t: float, freedom: int) -> float:
    """Return -log of the upper tail of Student's t (Wallace 1959: to a few percent of the tail)."""
    times = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    z = math.copysign(times * math.sqrt(freedom * math.log1p(t * t / freedom)), t)
    return -math.log(max(0.5 * math.erfc(z / math.sqrt(2.0)), 1e-300))
