"""Arithmetic of one block of requests: when it ends, the payoffs of bets on it, and the harm that it certifies."""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, Floats

SHORTEST_S: Final = 5.0
"""Shortest block: servers have better and worse seconds, and the seconds of one block count as one observation. Blocks
are longer in proportion to the dispersion of stable's requests, since its bad times then last longer."""
LONGEST_OF_BURSTS_S: Final = 30.0
LONG_S: Final = 15.0
LONGEST_S: Final = 60.0
STABLE_REQUESTS: Final = 20.0
CANDIDATE_REQUESTS: Final = 5.0
STAKES: Final = (0.04, 0.15, 0.4)
"""Shares of the wealth that are at stake in a block."""
BLOCK_IS_WORTH: Final = 40.0
"""Most independent requests that a block counts for, as if any two of them had a correlation of 1/40."""
FEW: Final = 2.0
"""Ratio of the candidate's requests to stable's above which stable has too few."""
CERTIFIED: Final = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
"""Levels of harm: shares of the candidate's requests."""
BOUND: Final = np.log(20.0)
"""Evidence of 20 to 1: each level is certified wrongly in at most one rollout of twenty."""
CEILING: Final = BOUND + 2.0
"""Upper limit of the evidence, so that a candidate that turns bad soon loses its certificate."""
FLOOR: Final = -5.0
"""Lower limit, so that one that recovers regains it; a restart from here certifies wrongly with odds of 1 to 3,000."""


def merged(pending: Floats, age_s: Floats, bins: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Return the open block's counts and age after a window. A block begins with its first request."""
    together = pending + bins
    return together, np.where(together.any((-2, -1)), age_s + seconds, age_s)


def closing(counts: Floats, age_s: Floats, spread: Floats) -> Bools:
    """Return whether the block ends now, from counts [..., 2] of (stable, candidate), age_s [...] and spread [...]."""
    both = (counts[..., CANDIDATE] >= 1) & (counts[..., STABLE] >= 1)
    enough = (counts[..., STABLE] >= STABLE_REQUESTS) & (counts[..., CANDIDATE] >= CANDIDATE_REQUESTS)
    shortest_s = np.where(enough, np.clip(SHORTEST_S * spread, SHORTEST_S, LONGEST_OF_BURSTS_S), LONG_S)
    ends: Bools = (both & (age_s >= shortest_s)) | (age_s >= LONGEST_S)
    return ends


def tails(bins: Floats) -> Floats:
    """Return for each bin the number in it or above; one more entry, 0, follows the last bin."""
    counts = np.zeros((*bins.shape[:-1], bins.shape[-1] + 1))
    counts[..., :-1] = np.cumsum(bins[..., ::-1], -1)[..., ::-1]
    return counts


def summed(logs: Floats) -> Floats:
    """Return the log of the sum [...] of the last axis's exponentials; at least one of them is finite."""
    most = logs.max(-1, keepdims=True)
    total: Floats = most[..., 0] + np.log(np.exp(logs - most).sum(-1))
    return total


def redistributed(wealth: Floats, part: Floats | float) -> Floats:
    """Return the log wealth [..., bets] after `part` (0 to 1) of each bet's is dealt to all alike: the fixed share."""
    mean = summed(wealth)[..., None] - np.log(wealth.shape[-1])
    after: Floats = np.log((1.0 - part) * np.exp(wealth - mean) + part) + mean
    return after


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


def certified(harmless: Floats, bad: Floats, requests: Floats, share: Floats, spread: Floats) -> Floats:
    """Return the log evidence [..., D] after a block, against each level of harm beyond stable's share.

    The likelihood ratio of independent requests, of a tenth of that harm against all of it, or, where stable
    fails often, of nine tenths of all failures: a candidate that mends it is soon known to. Where requests come in
    bursts it counts for less, by their dispersion.
    """
    levels = np.array(CERTIFIED)
    worse = np.minimum(share[..., None] + levels, 1.0 - 1e-9)
    fine = np.minimum(share[..., None] + 0.1 * levels, 0.9 * worse)
    bad, good = bad[..., None], (requests - bad)[..., None]
    ratio = bad * np.log(np.maximum(fine, 1e-12) / worse) + good * np.log1p((worse - fine) / (1.0 - worse))
    after: Floats = np.clip(harmless + ratio / spread[..., None], FLOOR, CEILING)
    return after


def harm_bound(harmless: Floats) -> Floats:
    """Return the smallest certified level [...], or 1."""
    bound: Floats = np.where(harmless >= BOUND, np.array(CERTIFIED), 1.0).min(-1)
    return bound
