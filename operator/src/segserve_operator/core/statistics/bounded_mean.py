"""Anytime-valid test whether the mean of values in [0, 1] exceeds a limit: bets on each value (a betting e-process).

A bet with the stake s multiplies its wealth by `1 + s (x / limit - 1)` for each value x. While the mean of x, given all
values before, is at most the limit, no bet wins on average, so that their mean wealth reaches 1 / a in at most one of
1 / a series, however long they are (Ville's inequality). Waudby-Smith and Ramdas (2024), "Estimating means of bounded
random variables by betting": the mixture over a grid of stakes.

The order of values does not matter to the wealth, so that counts of values are all that it needs.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve_operator.core.evidence import Floats

Indices: TypeAlias = NDArray[np.int_]

STAKES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 15 / 16)
"""Parts of the wealth that are staked; with all of it, the first value of 0 would end the bet."""

_HALVINGS: Final = 30


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


def shared_out(values: Floats, grid: Floats) -> Floats:
    """Return each of `values` [...] as parts [..., V] of one, at the two of `grid` [V] beside it, with the same mean.

    The logarithm is concave: bets win less on the parts than on the value, so that no evidence is won by it.
    """
    at = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    upper = np.clip((values - grid[at]) / (grid[at + 1] - grid[at]), 0.0, 1.0)
    numbers = np.arange(len(grid))
    lower: Floats = (numbers == at[..., None]) * (1.0 - upper)[..., None]
    parts: Floats = lower + (numbers == at[..., None] + 1) * upper[..., None]
    return parts


def interval(counts: Floats, values: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the interval (low, high) [...] of the mean of values in [0, 1], `counts` [..., V] of each of `values` [V].

    With a probability of at least 1 - `level` it holds the mean at all moments together, if given all values before the
    mean is always the same: a confidence sequence. It consists of the means that no bet at half the level refutes.
    """
    return _least(counts, values, level / 2.0), 1.0 - _least(counts, 1.0 - values, level / 2.0)


def quantile_bins(counts: Floats, values: Floats, quantile: float, level: float) -> tuple[Indices, Indices]:
    """Return the first and last bin [...] that may hold the quantile: 0 to K, between the K edges.

    `counts` [..., K, V] are of shares `values` [V] that were below each edge. With a probability of at least
    1 - `level` the bins hold it at all moments together, if given all shares before their mean is always the same. A
    bin is refuted by a bet at half the level that less than `quantile` is below its upper edge, or more below its lower
    one (Howard and Ramdas 2022). What refutes a bin so refutes all below it, or above it.
    """
    proof = np.log(2.0 / level)
    above = log_wealth(counts, 1.0 - np.asarray(values), 1.0 - quantile) >= proof
    below = log_wealth(counts, values, quantile) >= proof
    return above.sum(-1), counts.shape[-2] - below.sum(-1)


def _least(counts: Floats, values: Floats, level: float) -> Floats:
    """Return the least mean [...] that the bet that the mean exceeds it does not refute, by bisection."""
    stakes = np.array(STAKES)
    low, high = np.zeros(counts.shape[:-1]), np.ones(counts.shape[:-1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        growth = np.log1p(stakes[:, None] * (values / middle[..., None, None] - 1.0))
        wealth = (counts[..., None, :] * growth).sum(-1)
        best = wealth.max(-1)
        refuted = best + np.log(np.exp(wealth - best[..., None]).mean(-1)) >= -np.log(level)
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return low
