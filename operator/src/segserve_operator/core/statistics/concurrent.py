"""Bets on candidate and stable in the same block, for requests whose dependence is known from stable's past.

A likelihood ratio of both revisions' counts against the nearest null (Turner, Ly and Gruenwald 2021): the factor is at
most 1 on average whatever stable's share is, so that what hits both cancels and no baseline is estimated. Counts are
divided by how many requests amount to one independent request (`past`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

ODDS: Final = (1.2, 1.6, 2.5, 6.0, 20.0, 80.0)
"""Alternatives: ratio of the candidate's odds of being above the edge to the odds allowed."""
BISECTIONS: Final = 14
MOST: Final = 1.0 - 1e-6


def independent(requests: Floats, seconds: Floats, clustered_s: Floats) -> Floats:
    """Return how many of the requests count as one [...]; see `past`. Requests and seconds are of one block."""
    times: Floats = 1.0 + requests / np.maximum(seconds, 1e-9) * clustered_s
    return times


def two_sample(
    bad: tuple[Floats, Floats], requests: tuple[Floats, Floats], level: Floats, allowed: Floats, tolerance: Floats
) -> Floats:
    """Return the log factors [..., ODDS] of a block, from counts of (stable, candidate) of independent requests.

    `level` is stable's share as expected before the block, `allowed` the candidate's, and the null says that the
    candidate's share is at most stable's plus `tolerance`. All arguments are [...].
    """
    stable, candidate = (each[..., None] for each in requests)
    bad_stable, bad_candidate = (each[..., None] for each in bad)
    likely, tolerance = np.clip(level, 1e-6, MOST)[..., None], tolerance[..., None]
    worse = alternatives(allowed)
    null = _nearest(likely, worse, stable, candidate, tolerance)
    null_candidate = np.minimum(null + tolerance, MOST)
    factors: Floats = _ratio(bad_candidate, candidate, worse, null_candidate) + _ratio(bad_stable, stable, likely, null)
    # An alternative within the null bets on nothing.
    return np.where(worse > likely + tolerance, factors, 0.0)


def one_sample(bad: Floats, requests: Floats, allowed: Floats) -> Floats:
    """Return the log factors [..., ODDS] against the candidate's share being at most `allowed` [...]."""
    return _ratio(bad[..., None], requests[..., None], alternatives(allowed), np.clip(allowed, 1e-6, MOST)[..., None])


def alternatives(allowed: Floats) -> Floats:
    """Return the candidate's shares [..., ODDS] that are bet on."""
    share, odds = np.clip(allowed, 1e-6, 1.0 - 1e-4)[..., None], np.array(ODDS)
    worse: Floats = np.minimum(odds * share / (1.0 + share * (odds - 1.0)), MOST)
    return worse


def _ratio(bad: Floats, requests: Floats, share: Floats, null: Floats) -> Floats:
    ratio: Floats = bad * np.log(share / null) + (requests - bad) * np.log((1.0 - share) / (1.0 - null))
    return ratio


def _nearest(likely: Floats, worse: Floats, stable: Floats, candidate: Floats, tolerance: Floats) -> Floats:
    """Return stable's share under the null that is nearest to the alternative, in terms of both divergences."""
    pooled = (stable * likely + candidate * worse) / np.maximum(stable + candidate, 1e-9)
    if not tolerance.any():
        return np.clip(pooled, 1e-9, MOST)
    low, high = likely, np.maximum(worse - tolerance, likely)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        above = np.minimum(middle + tolerance, MOST)
        slope = candidate * (worse - above) / (above * (1.0 - above)) + stable * (likely - middle) / (
            middle * (1.0 - middle)
        )
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return np.clip(np.where(tolerance > 0, 0.5 * (low + high), pooled), 1e-9, MOST)
