"""What stable's share above an edge is now, from its recent past and its present.

Neither alone will do: the past is precise, but an incident that begins now is not in it; the present is a few requests.
An estimate that is too low lets bets win that should not, by its variance to the first order: so that is known, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Bools, Floats
    from segserve_operator.core.statistics.exceedance import ExceedanceState

HALF_LIFE_S: Final = 30.0
REMEMBERED: Final = 300.0
"""Requests that are remembered at least, however long ago they were."""
JUMP: Final = 15.0
"""The past counts as so many requests beside those of the present block, where that is the worse of the two."""
DISPERSION_PRIOR: Final = 1.0
"""Requests are taken to be independent until stable's bad ones have deviated by a few."""
DISPERSION_HALF_LIFE_S: Final = 180.0
"""Stable's dispersion is that of the past minutes."""
MOST_CORRELATED: Final = 0.05
"""A block says of dispersion at most that any two of its requests have this correlation: else it was a jump."""
SWING_S: Final = 30.0
"""Servers have better and worse times of their own, with this time constant."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Stable's share above each stream's edge; all [..., S].

    recent: the estimate from the last half minute and the block; low: what it is at least, or the present.
    present: of the block alone. worst: the larger of recent and present.
    share: what the candidate is held against: the recent, and the present where that is clearly more.
    variance: of the present. sampling: the half of it that stakes pay for, estimated without bias.
    swing: what servers' own swings add in the long run.
    spread: how many times the variance of independent requests it is.
    squares, expected: what the block adds to that, by its weight: an incident must not outweigh all that comes after.
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
    """Return stable's counts [..., B] after a block of that age; older ones fade."""
    added = block.sum(-1)
    fading = np.maximum(np.exp2(-age_s / HALF_LIFE_S), REMEMBERED / (REMEMBERED + added))
    after: Floats = memory * fading[..., None] + block
    return after


def spread_of(state: ExceedanceState) -> Floats:
    """Return stable's dispersion [..., S]: 1 for independent requests, more for bursts."""
    spread: Floats = np.maximum((state.squares + DISPERSION_PRIOR) / (state.expected + DISPERSION_PRIOR), 1.0)
    return spread


def dispersion(state: ExceedanceState, fresh: Baseline, known: Bools) -> dict[str, Floats]:
    """Return stable's squared deviations of late, and what they would be were its requests independent; [..., S]."""
    kept = np.exp2(-state.age_s / DISPERSION_HALF_LIFE_S)[..., None]
    squares, expected = kept * state.squares + fresh.squares, kept * state.expected + fresh.expected
    return {"squares": np.where(known, squares, state.squares), "expected": np.where(known, expected, state.expected)}


def baseline(
    above: Floats, remembered: Floats, block: Floats, requests: Floats, age_s: Floats, spread: Floats, swing: Floats
) -> Baseline:
    """Return it from the remembered requests [...], those above the edge [..., S], and the present block's."""
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
