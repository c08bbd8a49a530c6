"""Burn rate, after the SRE workbook's table 5-8: the long and the short window both burn at 14.4 times the budget.

A canary is shorter than the hour of the long window; that holds what there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from bench.rollout.world import Floats

SLO_ERRORS: Final = 0.005
FACTOR: Final = 14.4
LONG_S: Final = 3600.0
SHORT_S: Final = 300.0


def rolled_back_s(errors: Floats, requests: Floats, scrape_s: float, factor: float = FACTOR) -> Floats:
    """Return when each run is rolled back, inf where it is not; counts are the canary's, [runs, scrapes]."""
    burns = np.ones(errors.shape, bool)
    for window_s in (LONG_S, SHORT_S):
        bad, all_ = (_last(each, round(window_s / scrape_s)) for each in (errors, requests))
        burns &= bad > factor * SLO_ERRORS * all_
    found: Floats = np.where(burns.any(1), (burns.argmax(1) + 1) * scrape_s, np.inf)
    return found


def _last(counts: Floats, scrapes: int) -> Floats:
    summed = counts.cumsum(1)
    found: Floats = summed - np.pad(summed, ((0, 0), (scrapes, 0)))[:, : counts.shape[1]]
    return found
