"""Anytime-valid test whether the mean of values in [0, 1] exceeds a limit: bets on each value (a betting e-process).

A bet with the stake s multiplies its wealth by `1 + s (x / limit - 1)` for each value x. While the mean of x, given all
values before, is at most the limit, no bet wins on average, so that their mean wealth reaches 1 / a in at most one of
1 / a series, however long they are (Ville's inequality). Waudby-Smith and Ramdas (2024), "Estimating means of bounded
random variables by betting": the mixture over a grid of stakes.

The order of values does not matter to the wealth, so that counts of values are all that it needs.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

STAKES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 15 / 16)
"""Parts of the wealth that are staked; with all of it, the first value of 0 would end the bet."""


def log_wealth(counts: Floats, values: Floats, limit: float) -> Floats:
    """Return the log evidence [...] that the mean exceeds `limit` (0 to 1): `counts` [..., V] of each of `values` [V].

    Values are 0 to 1. A sum of counts per window is the same as value by value.
    """
    stakes = np.array(STAKES)
    growth = np.log1p(stakes[:, None] * (np.asarray(values) / limit - 1.0))
    # Row by row: one product of matrices adds up in another order for many rows than for one.
    wealth = (growth @ counts[..., None])[..., 0]
    best = wealth.max(-1)
    mixed: Floats = best + np.log(np.exp(wealth - best[..., None]).mean(-1))
    return mixed
