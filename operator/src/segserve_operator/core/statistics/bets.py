"""Payoffs of bets on a block of requests: log factors whose mean is at most 1 for a candidate that is no worse."""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

STAKES: Final = (0.04, 0.15, 0.4)
"""Shares of the wealth that are at stake in a block."""
BLOCK_IS_WORTH: Final = 40.0
"""Most independent requests that a block counts for, as if any two of them had a correlation of 1/40."""

FEW: Final = 2.0
"""Ratio of the candidate's requests to stable's above which stable has too few."""


def summed(logs: Floats) -> Floats:
    """Return the log of the sum [...] of the last axis's exponentials; at least one of them is finite."""
    most = logs.max(-1, keepdims=True)
    total: Floats = most[..., 0] + np.log(np.exp(logs - most).sum(-1))
    return total


def staked(share: Floats, allowed: Floats, before: Floats, unsure: Floats) -> Floats:
    """Return the log factors [..., STAKES] of a block with this candidate's share; all arguments are [...].

    (A + share) / (A + allowed), with A from what was allowed before the block: linear in the share, so the requests of
    a block may depend on each other in any way. `unsure` is the variance of `allowed`: E[1 / (A + b)] exceeds
    1 / (A + E b) by that much.
    """
    stakes = np.array(STAKES)
    scale = before[..., None] * (1.0 - stakes) / stakes
    bound = scale + allowed[..., None]
    factors: Floats = np.log((scale + share[..., None]) / (bound + unsure[..., None] / bound))
    return factors


def refuted(share: Floats, requests: Floats, bad: Floats, stable: Floats, spread: Floats) -> Floats:
    """Return the largest log payoff [...] of a block.

    The arguments [...] are the candidate's share and requests, stable's bad ones and all, and its dispersion. If stable
    has only a few, as during a bake, it may miss by chance an incident that has just hit both. A bet then pays no more
    than half the odds (Chernoff) against stable's share being the candidate's.
    """
    present = np.clip(bad / np.maximum(stable, 1.0), 1e-9, 1.0 - 1e-9)
    share = np.clip(share, 1e-9, 1.0 - 1e-9)
    far = present * np.log(present / share) + (1.0 - present) * np.log((1.0 - present) / (1.0 - share))
    most = np.where(present < share, np.maximum(stable / spread * far - np.log(2.0), 0.0), 0.0)
    return np.where(FEW * stable < requests, most, np.inf)


def likelihood(share: Floats, requests: Floats, allowed: Floats, unsure: Floats, odds: tuple[float, ...]) -> Floats:
    """Return the log factors [..., odds] of a block's likelihood ratio; all arguments [...].

    The alternative has `odds` times the odds allowed. `requests` is the number of independent requests that the block
    is worth: unlike a stake, the ratio relies on that, and on the candidate's requests being no more dispersed than
    stable's. It is far stronger if the allowed share is large, such as a half. `allowed` must be of the same block;
    `unsure` is its variance.
    """
    times = np.array(odds)
    allowed, share = np.minimum(allowed, 0.99)[..., None], share[..., None]
    slope = np.minimum(requests, BLOCK_IS_WORTH)[..., None] * np.log(times)
    worse = np.minimum(allowed + 0.5 * slope * unsure[..., None], 0.99)
    normal = np.log1p(worse * (times - 1.0))
    factors: Floats = slope * share - np.minimum(requests, BLOCK_IS_WORTH)[..., None] * normal
    return factors
