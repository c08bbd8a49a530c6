"""Windows are merged into blocks before they are judged; a block's end depends only on request counts and time."""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, Floats

SHORTEST_S: Final = 5.0
"""Shortest block: servers have better and worse seconds, and those of one block count as one observation. Blocks are
longer in proportion to the dispersion of stable's requests, since its bad times then last longer."""
LONGEST_OF_BURSTS_S: Final = 30.0
LONG_S: Final = 15.0
LONGEST_S: Final = 60.0
STABLE_REQUESTS: Final = 20.0
CANDIDATE_REQUESTS: Final = 5.0


def merged(pending: Floats, age_s: Floats, bins: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Return the open block's counts and age after a window. A block begins with its first request."""
    together = pending + bins
    return together, np.where(together.any((-2, -1)), age_s + seconds, age_s)


def closing(counts: Floats, age_s: Floats, spread: Floats) -> Bools:
    """Tell whether the block ends now, from counts [..., 2] of (stable, candidate), age_s [...] and spread [...]."""
    both = (counts[..., CANDIDATE] >= 1) & (counts[..., STABLE] >= 1)
    enough = (counts[..., STABLE] >= STABLE_REQUESTS) & (counts[..., CANDIDATE] >= CANDIDATE_REQUESTS)
    shortest_s = np.where(enough, np.clip(SHORTEST_S * spread, SHORTEST_S, LONGEST_OF_BURSTS_S), LONG_S)
    ends: Bools = (both & (age_s >= shortest_s)) | (age_s >= LONGEST_S)
    return ends


def tails(bins: Floats) -> Floats:
    """Return for each bin the number in it or above; one more entry, 0, follows the last bin."""
    found = np.zeros((*bins.shape[:-1], bins.shape[-1] + 1))
    found[..., :-1] = np.cumsum(bins[..., ::-1], -1)[..., ::-1]
    return found
