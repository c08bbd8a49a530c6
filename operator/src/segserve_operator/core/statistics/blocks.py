"""Looks are merged into blocks before they are judged; when one ends depends on numbers of requests and time alone."""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, Floats

SHORTEST_S: Final = 5.0
"""Servers have better and worse seconds of their own: those of one block count as one observation. Where stable's
requests are more dispersed than independent ones, its bad times last longer, and so do blocks: in proportion."""
LONGEST_OF_BURSTS_S: Final = 30.0
LONG_S: Final = 15.0
LONGEST_S: Final = 60.0
STABLE_REQUESTS: Final = 20.0
CANDIDATE_REQUESTS: Final = 5.0


def merged(pending: Floats, age_s: Floats, bins: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Return the open block's counts and age after a look. A block begins with its first request."""
    together = pending + bins
    return together, np.where(together.any((-2, -1)), age_s + seconds, age_s)


def closing(counts: Floats, age_s: Floats, spread: Floats) -> Bools:
    """Tell where the block ends now; counts [..., 2] of (stable, candidate), age_s [...], stable's dispersion [...]."""
    both = (counts[..., CANDIDATE] >= 1) & (counts[..., STABLE] >= 1)
    enough = (counts[..., STABLE] >= STABLE_REQUESTS) & (counts[..., CANDIDATE] >= CANDIDATE_REQUESTS)
    shortest_s = np.where(enough, np.clip(SHORTEST_S * spread, SHORTEST_S, LONGEST_OF_BURSTS_S), LONG_S)
    ends: Bools = (both & (age_s >= shortest_s)) | (age_s >= LONGEST_S)
    return ends


def tails(bins: Floats) -> Floats:
    """Return for each bin how many are in it or above; one more entry, 0, for above all."""
    found = np.zeros((*bins.shape[:-1], bins.shape[-1] + 1))
    found[..., :-1] = np.cumsum(bins[..., ::-1], -1)[..., ::-1]
    return found
