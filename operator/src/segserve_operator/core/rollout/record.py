"""The record of one rollout: its state, evidence and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import ENDED, Phase

LAST_WORDS_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class RolloutState:
    """State of a rollout in its model's status, written together with the roles; traffic follows from it.

    `sequence` counts the decisions that changed something, which reveals a record that is behind. Times are Unix
    seconds; `resumed_s` is the last end of a pause (0: never). `weight` is the candidate's percentage of requests,
    `skipped` names the gates that a person has skipped.
    """

    rollout: str
    revision: str
    phase: Phase = Phase.PENDING
    step: int = -1
    sequence: int = 0
    paused: bool = False
    quarantines: int = 0
    started_s: float = 0.0
    since_s: float = 0.0
    step_since_s: float = 0.0
    resumed_s: float = 0.0
    weight: int = 0
    skipped: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether the rollout has ended."""
        return self.phase in ENDED

    @property
    def undecided_since_s(self) -> float:
        """The time from which the deadline counts: the start, or the last end of a pause."""
        return max(self.started_s, self.resumed_s)

    def matters(self, now_s: float) -> bool:
        """Tell whether its record may still change: until some time after its end, so that no last decision is lost."""
        return not self.ended or now_s - self.since_s < LAST_WORDS_S


@dataclass(frozen=True, slots=True)
class Row:
    """A stored window: (stable, candidate) counts, and latencies as (bin, count) of non-empty bins."""

    at_s: float
    seconds: float
    weight: int
    requests: tuple[int, int]
    errors: tuple[int, int]
    latencies: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = ((), ())


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision that changed something.

    `inputs` and `result` are canonical JSON, so that `replay` can repeat the decision and compare.
    """

    sequence: int
    at_s: float
    signal: str
    phase: Phase
    weight: int
    actor: str
    reason: str
    message: str
    verdicts: tuple[Verdict, ...] = ()
    inputs: str = ""
    result: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything known about one rollout.

    `gates` are the measured gates' states by name, `seen` the gateways' counters at the end of the last window, and
    `hung` the requests that hung then; `split` is the state of the test of the split. `rows` are oldest first, and
    coarser the older they are.
    """

    name: str
    model: str
    stable: str
    candidate: str
    policy: RolloutPolicy
    slo: Slo
    progress: Progress
    sequence: int = 0
    gates: Mapping[str, Any] = field(default_factory=dict)
    seen: Sample = field(default_factory=dict)
    hung: Any = None
    split: Any = None
    rows: tuple[Row, ...] = ()
    decisions: tuple[Decision, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
