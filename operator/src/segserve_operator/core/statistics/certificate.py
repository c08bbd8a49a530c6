"""Anytime-valid upper bound on the harm that a candidate does."""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

CERTIFIED: Final = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
"""Levels of harm: shares of the candidate's requests."""
BOUND: Final = np.log(20.0)
"""Evidence of 20 to 1: each level is certified wrongly in at most one rollout of twenty."""
CEILING: Final = BOUND + 2.0
"""Upper limit of the evidence, so that a candidate that turns bad soon loses its certificate."""
FLOOR: Final = -5.0
"""Lower limit, so that one that recovers regains it; a restart from here certifies wrongly with odds of 1 to 3,000."""


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
    """Return the smallest certified level [...]; 1 if there is none."""
    bound: Floats = np.where(harmless >= BOUND, np.array(CERTIFIED), 1.0).min(-1)
    return bound
