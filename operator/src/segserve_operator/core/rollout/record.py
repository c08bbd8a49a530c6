"""The record of one rollout: where it stands, the evidence, and what each decision saw."""

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
    """Where a rollout stands, as its model's status says it, in one write with the roles: traffic follows from it.

    `sequence` counts the decisions that changed something, so that a record that is behind is noticed. Times are Unix
    seconds, `resumed_s` that of the last end of a pause (0 is never); `weight` is the percentage of requests that the
    candidate gets, `skipped` names the gates that a person has put aside.
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
        """Whether nothing more will come of it."""
        return self.phase in ENDED

    @property
    def undecided_since_s(self) -> float:
        """Since when the deadline counts: the start, or the last end of a pause."""
        return max(self.started_s, self.resumed_s)

    def matters(self, now_s: float) -> bool:
        """Tell whether its record may still change: until a while after its end, lest a last decision is lost."""
        return not self.ended or now_s - self.since_s < LAST_WORDS_S


@dataclass(frozen=True, slots=True)
class Row:
    """A look as it is kept: (stable, candidate) counts, and latencies as (bin, count) of bins that are not empty."""

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
    """All that is known of one rollout.

    `gates` holds the measured gates' states by name, `seen` what the gateways had counted at the last look, and `hung`
    what of that had hung; `split` is the state of the test of the weights. `rows` are oldest first, and coarser the
    older they are.
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
