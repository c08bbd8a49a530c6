"""Phases of a rollout and the legal moves between them, as data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray


class Phase(IntEnum):
    """Phase of a rollout. Simulations hold arrays of these numbers."""

    PENDING = 0
    """The candidate's servers load and prove it."""
    GOLDEN = 1
    """It is checked with golden images, at weight 0."""
    PROGRESSING = 2
    """It gets its step's share of requests."""
    QUARANTINED = 3
    """It failed while stable answered: weight 0 until segserve's own requests decide."""
    BAKING = 4
    """It is stable and watched; the former revision stays loaded and, for a canary, keeps a few requests."""
    SUCCEEDED = 5
    ROLLED_BACK = 6
    CANCELLED = 7
    """The spec requires another revision."""
    SHADOW = 8
    """Between Golden and the first step: it gets copies of callers' requests; no caller gets its answers.

    Records hold these numbers, so what came later has a later one.
    """
    JUDGED = 9
    """It has a verdict and no requests, as its policy promotes nothing by itself. A person may still promote it."""

    @property
    def label(self) -> str:
        """The name of the phase in statuses: one CamelCase word."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    @classmethod
    def labelled(cls, label: str) -> Phase:
        """Return the phase with this label; raises KeyError for an unknown label."""
        return {phase.label: phase for phase in cls}[label]


class Signal(IntEnum):
    """Reason for a move; if several apply in a phase, the first one here takes precedence."""

    CANCEL = 1
    """The spec requires another revision."""
    ABORT = 2
    """A person aborts it."""
    BREACH = 3
    """A gate has proof against the candidate."""
    CONFIRMED = 4
    """Segserve's own requests fail as the callers' did."""
    QUARANTINE = 5
    """It fails while stable answers."""
    GIVE_UP = 6
    """The deadline has passed without a decision, and the policy rolls back."""
    PROMOTE = 7
    """A person, or the policy at the deadline, promotes it."""
    RESUMED = 8
    """Segserve's own requests are answered."""
    PROVED = 9
    """All its servers serve it, and every gateway has their addresses."""
    GOLDEN_PASSED = 10
    ADVANCE = 11
    """The next step may begin."""
    CERTIFIED = 12
    """The last step is done."""
    BAKED = 13
    """bakeTime has passed."""
    NONE = 14
    SHADOW_BEGINS = 15
    """Golden images are passed, and copies of callers' requests come before the steps."""
    SHADOW_PASSED = 16
    """Enough copies were answered, and all gates bound its harm within their tolerances."""
    SHADOW_OVER = 17
    """shadow.maxDuration has passed, and it is not probably worse."""
    JUDGED_WELL = 18
    """Like SHADOW_PASSED, for a rollout that promotes nothing by itself."""
    JUDGED_UNDECIDED = 19
    """Shadow's time is over without proof for or against it, of a rollout that promotes nothing by itself."""


ENDED: Final = frozenset({Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.CANCELLED, Phase.JUDGED})
_BEFORE: Final = (Phase.PENDING, Phase.GOLDEN, Phase.SHADOW, Phase.PROGRESSING, Phase.QUARANTINED)
_ACTIVE: Final = (*_BEFORE, Phase.BAKING)

MOVES: Final[Mapping[tuple[Phase, Signal], Phase]] = {
    **{(phase, Signal.CANCEL): Phase.CANCELLED for phase in _ACTIVE},
    **{(phase, Signal.ABORT): Phase.ROLLED_BACK for phase in _ACTIVE},
    **{(phase, Signal.BREACH): Phase.ROLLED_BACK for phase in _ACTIVE},
    **{(phase, Signal.GIVE_UP): Phase.ROLLED_BACK for phase in _BEFORE},
    **{(phase, Signal.PROMOTE): Phase.BAKING for phase in _BEFORE if phase is not Phase.PENDING},
    (Phase.PENDING, Signal.PROVED): Phase.GOLDEN,
    (Phase.GOLDEN, Signal.GOLDEN_PASSED): Phase.PROGRESSING,
    (Phase.GOLDEN, Signal.SHADOW_BEGINS): Phase.SHADOW,
    (Phase.SHADOW, Signal.SHADOW_PASSED): Phase.PROGRESSING,
    (Phase.SHADOW, Signal.SHADOW_OVER): Phase.PROGRESSING,
    (Phase.SHADOW, Signal.JUDGED_WELL): Phase.JUDGED,
    (Phase.SHADOW, Signal.JUDGED_UNDECIDED): Phase.JUDGED,
    (Phase.PROGRESSING, Signal.ADVANCE): Phase.PROGRESSING,
    (Phase.PROGRESSING, Signal.CERTIFIED): Phase.BAKING,
    (Phase.PROGRESSING, Signal.QUARANTINE): Phase.QUARANTINED,
    (Phase.BAKING, Signal.QUARANTINE): Phase.QUARANTINED,
    (Phase.QUARANTINED, Signal.RESUMED): Phase.PROGRESSING,
    (Phase.QUARANTINED, Signal.CONFIRMED): Phase.ROLLED_BACK,
    (Phase.BAKING, Signal.BAKED): Phase.SUCCEEDED,
}
"""A signal that is not listed for a phase is ignored in it."""

_TABLE: Final = np.array(
    [[MOVES.get((phase, signal), phase) for signal in (Signal.NONE, *Signal)] for phase in Phase], dtype=np.int8
)
_LEGAL: Final = np.array([[(phase, signal) in MOVES for signal in (Signal.NONE, *Signal)] for phase in Phase])


def legal(phase: NDArray[np.int8], signal: int | NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return whether a signal moves a rollout in that phase; arrays broadcast against each other."""
    possible: NDArray[np.bool_] = _LEGAL[phase, signal]
    return possible


def moved(phase: NDArray[np.int8], signal: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the phases after the signals; arrays of equal shape."""
    target: NDArray[np.int8] = _TABLE[phase, signal]
    return target
