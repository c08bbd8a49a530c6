"""Verdicts, and the two kinds of gates: gates that measure requests and gates that judge the results of checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np

from segserve_operator.api.rollout_policy import CheckedGateSpec, GateSpec, PromqlGate, RolloutPolicy, Slo, WebhookGate
from segserve_operator.core.evidence import EvidenceWindow, Judgement
from segserve_operator.core.gates.checks import CheckResult, FailedCheck, QueryRange, ServiceStatus
from segserve_operator.core.statistics.discordant import DiscordantState
from segserve_operator.core.statistics.exceedance import Exceedance, ExceedanceState
from segserve_operator.core.statistics.past import StablePast

State = TypeVar("State")
Edges: TypeAlias = tuple[float, ...]
"""Edges of latency bins in milliseconds."""


class Outcome(StrEnum):
    """The outcome of a gate. No data is Undecided, never Pass."""

    PASS = "Pass"
    BREACH = "Breach"
    UNDECIDED = "Undecided"


class OnBreach(StrEnum):
    """Effects of a measured gate's proof: roll back, hold the rollout in Shadow until a person decides, or nothing."""

    ROLLBACK = "Rollback"
    HOLD = "Hold"
    NOTE = "Note"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's outcome with the numbers behind it. `progress` is the evidence as a fraction (0 to 1) of its bound."""

    gate: str
    outcome: Outcome
    reason: str
    message: str
    progress: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)


class MeasuredGate(ABC, Generic[State]):
    """Judges requests counted at the gateways. Pure; a state is a frozen dataclass of float64 arrays, and of names.

    All arrays have leading axes, none for one rollout and [runs] in a simulation, so that ten thousand rollouts are
    judged by the same code as one.
    """

    __slots__ = ()

    @abstractmethod
    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> State:
        """Return the state before any window; `past` is stable's, for gates that compare with it."""

    def again(self, former: State) -> State:
        """Return the state before any window of a rollout that begins as the one of a later state did."""
        return self.start()

    def informed(self, state: State, past: StablePast) -> State:
        """Return the state with stable's past, if that was too short at the rollout's start."""
        return state

    @abstractmethod
    def update(self, state: State, window: EvidenceWindow) -> State:
        """Return the state after one more window. An empty window changes nothing."""

    def after_shadow(self, state: State) -> State:
        """Return the state with which a rollout goes on to callers: only what Shadow's pairs proved."""
        return state

    @abstractmethod
    def judge(self, state: State) -> Judgement:
        """Return the judgement over all windows so far."""

    @abstractmethod
    def explain(self, state: State, level: float) -> Verdict:
        """Return the verdict on one rollout (no leading axes); `level` is the gate's share of alpha."""


class ExceedanceGate(MeasuredGate[ExceedanceState]):
    """A gate whose evidence is of one `test`."""

    __slots__ = ()
    test: Exceedance

    def again(self, former: ExceedanceState) -> ExceedanceState:
        """Return the state before any window of a rollout with the same past of stable as a former one."""
        return self.test.again(former)

    def after_shadow(self, state: ExceedanceState) -> ExceedanceState:
        """Return the state with which a rollout goes on to callers."""
        return self.test.after_shadow(state)

    def judge(self, state: ExceedanceState) -> Judgement:
        """Return the judgement over all windows so far."""
        return self.test.judge(state)


@dataclass(frozen=True, slots=True)
class MeasuredGateType:
    """Registry entry of a gate that measures requests.

    `build` takes the gate's spec, the SLO, the rollout's policy and the latency edges. `tolerated_harm` returns the
    share of the candidate's requests (0 to 1) whose harm is negligible. A rule (`is_rule`) has evidence that is
    infinite or none, and takes no alpha; any other gate tests, and its spec is an `AlphaGateSpec`. `on_breach` takes
    the gate's spec.
    """

    spec: type[GateSpec]
    build: Callable[[Any, Slo, RolloutPolicy, Edges], MeasuredGate[Any]]
    tolerated_harm: Callable[[RolloutPolicy], float]
    is_rule: bool = False
    on_breach: Callable[[Any], OnBreach] = lambda _: OnBreach.ROLLBACK


@dataclass(frozen=True, slots=True)
class CheckedGateType:
    """Registry entry of a gate that judges the result of a check, which is made every `spec.interval`.

    `judge` takes the gate's spec, the latest result, the rollout's policy and the gate's share of alpha; it is pure.
    `purpose` names the kind of check: "golden" is scored by the agents of both revisions, "answers" is what they count
    of callers' requests, and "check" is run by the adapter of the gate's name.
    """

    spec: type[CheckedGateSpec]
    judge: Callable[[Any, CheckResult, RolloutPolicy, float], Verdict]
    purpose: Literal["golden", "answers", "check"] = "check"
    is_rule: bool = True


GateType: TypeAlias = MeasuredGateType | CheckedGateType


def outcome_of(judgement: Judgement, level: float) -> tuple[Outcome, str, float]:
    """Return outcome, reason and progress (0 to 1) of a measured gate for one rollout."""
    progress = float(np.clip(judgement.breach / -np.log(level), 0.0, 1.0))
    if progress >= 1.0 and bool(judgement.settling):
        return Outcome.UNDECIDED, "Settling", progress
    if progress >= 1.0:
        return Outcome.BREACH, "WorseThanStable", progress
    if bool(judgement.shared):
        return Outcome.UNDECIDED, "Incident", progress
    if not bool(judgement.enough):
        return Outcome.UNDECIDED, "NoData", progress
    if float(judgement.harm) >= 1.0:
        return Outcome.UNDECIDED, "TooFewRequests", progress
    return Outcome.PASS, "NoWorse", progress


def comparison(candidate: str, stable: str, judgement: Judgement, level: float) -> str:
    """Return a message with both figures, the odds against the candidate, the odds required and the harm possible."""
    return _with_odds(f"{candidate}, stable {stable}", judgement, level)


def _with_odds(figures: str, judgement: Judgement, level: float) -> str:
    if not bool(judgement.enough):
        return "no requests yet that both revisions had at the same time"
    harm = f"at most {100 * float(judgement.harm):.3g} % of its requests are worse off" if judgement.harm < 1 else ""
    parts = [figures, odds(float(judgement.breach), level), harm]
    if bool(judgement.incident):
        parts.append("both miss the SLO: an incident" if judgement.shared else "stable misses the SLO")
    return "; ".join(part for part in parts if part)


def comparison_of_pairs(
    state: DiscordantState, did: tuple[str, str], judgement: Judgement, level: float
) -> tuple[str, dict[str, float]]:
    """Return message and numbers of Shadow's pairs, by the first stream; `did` says what is counted of both."""
    candidate, stable, neither = (float(count) for count in (state.total + state.pending)[0])
    pairs = candidate + stable + neither
    says = f"of {pairs:,.0f} pairs {did[0]} {_times(candidate)}, {did[1]} {_times(stable)}"
    numbers = {"pairs": pairs, "candidate_alone": candidate, "stable_alone": stable}
    return _with_odds(says, judgement, level), numbers


def no_answer(gate: str, result: CheckResult) -> Verdict:
    """Return the verdict on a check without a usable result."""
    message = result.problem if isinstance(result, FailedCheck) else "the answer contains nothing to judge"
    return Verdict(gate, Outcome.UNDECIDED, "NoAnswer", message)


def judge_webhook(spec: WebhookGate, result: CheckResult, _policy: RolloutPolicy, _level: float) -> Verdict:
    """Judge by the status of a user's service: 2xx passes, 4xx breaches, any other is Undecided."""
    if not isinstance(result, ServiceStatus):
        return no_answer(spec.name, result)
    message = f"the service answered {result.status}"
    match result.status // 100:
        case 2:
            return Verdict(spec.name, Outcome.PASS, "Passes", message)
        case 4:
            return Verdict(spec.name, Outcome.BREACH, "Breaches", message, progress=1.0)
    return Verdict(spec.name, Outcome.UNDECIDED, "Neither", f"{message}; 2xx passes, 4xx breaches")


def judge_query(spec: PromqlGate, result: CheckResult, _policy: RolloutPolicy, _level: float) -> Verdict:
    """Judge by the bounds on a query's numbers."""
    if not isinstance(result, QueryRange):
        return no_answer(spec.name, result)
    low, high = result.low, result.high
    shown = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    bounds = [f"{name} {bound:.6g}" for name, bound in (("min", spec.min), ("max", spec.max)) if bound is not None]
    message = f"result {shown}, {', '.join(bounds)}"
    if (spec.min is not None and low < spec.min) or (spec.max is not None and high > spec.max):
        return Verdict(spec.name, Outcome.BREACH, "Breaches", message, progress=1.0)
    return Verdict(spec.name, Outcome.PASS, "Passes", message)


def _times(count: float) -> str:
    return {0.0: "never", 1.0: "once"}.get(count, f"{count:,.0f} times")


def odds(log_evidence: float, level: float) -> str:
    """Return the odds against the candidate, and the odds that a gate with this share of alpha requires."""
    return f"evidence 1:{np.exp(np.clip(log_evidence, 0.0, 25.0)):,.0f} of 1:{1 / level:,.0f}"
