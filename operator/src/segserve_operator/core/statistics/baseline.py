"""Estimate of stable's current share of requests above an edge, from its recent past and the present block.

Neither suffices alone: the past is precise but does not contain an incident that begins now; the present is a few
requests. An estimate that is too low lets bets win that should not, to the first order by its variance, so the variance
is estimated as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.core.evidence import Bools, Floats

HALF_LIFE_S: Final = 30.0
REMEMBERED: Final = 300.0
"""Number of requests that are remembered at least, however old they are."""
JUMP: Final = 15.0
"""Weight of the past in requests, beside the present block's, if the present is the worse of the two."""
DISPERSION_PRIOR: Final = 1.0
"""Weight of the assumption that requests are independent."""
DISPERSION_HALF_LIFE_S: Final = 180.0
"""Half-life of the memory of stable's dispersion."""
MOST_CORRELATED: Final = 0.05
"""Largest correlation between two requests that a block may suggest; more than that was a jump, not dispersion."""
SWING_S: Final = 30.0
"""Time constant of the swings of a healthy server."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Stable's share above each stream's edge; all [..., S].

    recent: estimate from the last half minute and the block; low: a lower bound of it or of the present.
    present: estimate from the block alone. worst: the larger of recent and present.
    share: reference for the candidate: recent, or present if that is clearly larger.
    variance: variance of present. sampling: the half of it that stakes pay for, estimated without bias.
    swing: variance that the servers' own swings add in the long run.
    spread: variance divided by that of independent requests.
    squares, expected: contribution of the block to the dispersion; weighted, so that one incident does not dominate.
    """

    share: Floats
    present: Floats
    recent: Floats
    low: Floats
    worst: Floats
    variance: Floats
    sampling: Floats
    swing: Floats
    spread: Floats
    squares: Floats
    expected: Floats


def remembered(memory: Floats, block: Floats, age_s: Floats) -> Floats:
    """Return stable's counts [..., B] after a block of age `age_s`; older counts fade."""
    added = block.sum(-1)
    fading = np.maximum(np.exp2(-age_s / HALF_LIFE_S), REMEMBERED / (REMEMBERED + added))
    after: Floats = memory * fading[..., None] + block
    return after


def spread_of(squares: Floats, expected: Floats) -> Floats:
    """Return stable's dispersion [..., S] from its squared deviations: 1 for independent requests, more for bursts."""
    spread: Floats = np.maximum((squares + DISPERSION_PRIOR) / (expected + DISPERSION_PRIOR), 1.0)
    return spread


def dispersion(squares: Floats, expected: Floats, age_s: Floats, fresh: Baseline, known: Bools) -> dict[str, Floats]:
    """Return stable's recent squared deviations and their expectation for independent requests, both [..., S]."""
    kept = np.exp2(-age_s / DISPERSION_HALF_LIFE_S)[..., None]
    return {
        "squares": np.where(known, kept * squares + fresh.squares, squares),
        "expected": np.where(known, kept * expected + fresh.expected, expected),
    }


def baseline(
    above: Floats, remembered: Floats, block: Floats, requests: Floats, age_s: Floats, spread: Floats, swing: Floats
) -> Baseline:
    """Return the estimate from the remembered requests [...], those above the edge [..., S], and the present block."""
    past, present = remembered[..., None], np.maximum(requests[..., None], 1.0)
    recent = (above + 0.5) / (past + 1.0)
    now = (JUMP * recent + block) / (JUMP + present)
    worth = present / np.minimum(spread, present)
    expected, level = recent * (1.0 - recent), np.maximum(recent, now)
    variance = level * (1.0 - level) / worth
    unbiased = np.minimum(above / np.maximum(past, 1.0), 1.0)
    weight = present * expected / (1.0 + present * expected)
    deviation = (block - present * recent) ** 2 / np.maximum(present * expected, 1e-9)
    swings = 2.0 * SWING_S / np.maximum(age_s, 1.0)
    return Baseline(
        share=np.maximum(recent, now - np.sqrt(expected / worth)),
        present=(block + 0.5) / (present + 1.0),
        recent=recent,
        low=np.maximum(recent - np.sqrt(recent / (past + 1.0)), np.maximum(now - 2.0 * np.sqrt(variance), 0.0)),
        worst=np.maximum(recent, block / present),
        variance=variance,
        sampling=0.5 * unbiased * (1.0 - unbiased) / worth,
        swing=(swing * expected) ** 2 * np.maximum(swings, 1.0)[..., None],
        spread=spread,
        squares=weight * np.minimum(deviation, 1.0 + MOST_CORRELATED * present),
        expected=weight,
    )
