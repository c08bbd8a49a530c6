"""One decision on one rollout: from its record and new inputs to the next record, which contains the inputs."""

from __future__ import annotations

import json
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import compress
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.api.segmentation_rollout import MAX_DECISIONS
from segserve_operator.core.evidence import EvidenceWindow, Judgement, Pairs
from segserve_operator.core.gates import informed, measured_gates
from segserve_operator.core.gates.base import MeasuredGate, Verdict
from segserve_operator.core.rollout.batches import at_once, taken_apart
from segserve_operator.core.rollout.engine import (
    WAITS,
    Policy,
    Progress,
    Signals,
    Transition,
    Wait,
    excess_of,
    next_transition,
    watch,
    with_pause,
)
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.plain import canonical, from_plain
from segserve_operator.core.rollout.policy import engine_policy
from segserve_operator.core.rollout.record import Decision, Record, RolloutState, kept, row_of
from segserve_operator.core.statistics.past import StablePast

T = TypeVar("T")

LOST: Final = "LOST"
"""Signal of a decision whose process stopped before writing it."""


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """Inputs of a decision besides the record: a window of evidence (or none), signals, and a person's request.

    In Shadow the `window` is of pairs, and `callers` are the requests of callers meanwhile, which decide nothing.
    `past` is stable's, for gates that learn from it while it is short. `skipped` are the gates to ignore, `paused`
    whether a person has paused the rollout. `actor` is the user who caused the decision, for the record.
    """

    now_s: float
    signals: Signals = field(default_factory=Signals)
    window: EvidenceWindow | None = None
    callers: EvidenceWindow | None = None
    past: StablePast | None = None
    paused: bool = False
    skipped: tuple[str, ...] = ()
    actor: str = "segserve"


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """Result of a decision: the updated record, the engine's transition, and whether anything changed."""

    record: Record
    transition: Transition
    changed: bool
    skipped: tuple[str, ...]
    at_s: float

    @property
    def signal(self) -> Signal:
        """The signal that the engine chose."""
        return Signal(int(self.transition.signal))

    @property
    def wait(self) -> Wait:
        """Why the rollout does not advance now."""
        return WAITS[int(self.transition.waits_for)]


Deciding: TypeAlias = Generator[tuple[Record, DecisionInput], DecisionResult, T]
"""A routine that requests decisions: each on a record and new inputs."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A rollout's policy in executable form: the engine's policy and the measured gates."""

    policy: Policy
    gates: Mapping[str, MeasuredGate[Any]]

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, policy: RolloutPolicy, slo: Slo, skipped: tuple[str, ...] = ()) -> Rules:
        """Return the rules without the skipped gates; the shares of alpha of the others do not change."""
        gates, engine = measured_gates(policy, slo), engine_policy(policy)
        kept = [name not in skipped for name in gates]
        return cls(
            policy=replace(
                engine,
                levels=tuple(compress(engine.levels, kept)),
                tolerances=tuple(compress(engine.tolerances, kept)),
                on_breach=tuple(compress(engine.on_breach, kept)),
            ),
            gates={name: gate for name, gate in gates.items() if name not in skipped},
        )

    def explain(self, states: Mapping[str, Any]) -> tuple[Verdict, ...]:
        """Return the verdict of each gate."""
        named = zip(self.gates.items(), self.policy.levels, strict=True)
        return tuple(gate.explain(states[name], level) for (name, gate), level in named if name in states)


def decide(record: Record, inputs: DecisionInput) -> DecisionResult:
    """Update the record with the inputs, and decide."""
    return decide_all([(record, inputs)])[0]


def decide_all(questions: Sequence[tuple[Record, DecisionInput]]) -> list[DecisionResult]:
    """Update each record with its inputs, and decide; of equal policies together, which changes no result."""
    cases = [_Case.of(record, inputs) for record, inputs in questions]
    decided = zip(questions, cases, _engine(cases), strict=True)
    return [_result(record, inputs, case, made) for (record, inputs), case, made in decided]


def _result(record: Record, inputs: DecisionInput, case: _Case, made: _Made) -> DecisionResult:
    transition = made.transition
    signal = Signal(int(transition.signal))
    changed = signal is not Signal.NONE or bool(record.progress.paused) != inputs.paused
    rows = record.rows
    if inputs.window is not None:
        callers, shadow = inputs.callers or inputs.window, inputs.window if inputs.callers is not None else None
        rows = kept(rows, row_of(callers, inputs.now_s, _weight(record), shadow))
    gates = {**record.gates, **made.gates}
    after = replace(record, progress=transition.progress, gates=gates, rows=rows)
    if changed:
        encoded = canonical(
            {
                "gates": case.known.gates,
                "progress": case.known.progress,
                "look": inputs.window,
                "heard": inputs.signals,
                "skipped": inputs.skipped,
                "nowS": inputs.now_s,
            }
        )
        after = _written_down(after, case.rules, inputs, transition, encoded)
    return DecisionResult(after, transition, changed, inputs.skipped, inputs.now_s)


def with_reason(result: DecisionResult, reason: str, message: str) -> DecisionResult:
    """Return the result with reason (one CamelCase word) and message of its decision."""
    *former, last = result.record.decisions
    decision = replace(last, reason=reason, message=message)
    return replace(result, record=replace(result.record, decisions=(*former, decision)))


def with_verdicts(record: Record, skipped: tuple[str, ...]) -> Record:
    """Return the record with the measured gates' verdicts on all evidence so far."""
    measured = Rules.of(record.policy, record.slo, skipped).explain(record.gates)
    names = {verdict.gate for verdict in measured}
    return replace(record, verdicts=(*measured, *(asked for asked in record.verdicts if asked.gate not in names)))


def repeat(decision: Decision, policy: RolloutPolicy, slo: Slo) -> str:
    """Return the result of repeating a decision on its recorded inputs, in the form of `decided_text`.

    Raises ValueError if the inputs cannot be read.
    """
    inputs = json.loads(decision.inputs)
    rules = Rules.of(policy, slo, tuple(inputs["skipped"]))
    known = _Known(
        gates={name: from_plain(gate.start(), inputs["gates"][name]) for name, gate in rules.gates.items()},
        progress=from_plain(Progress.begun(0.0), inputs["progress"]),
        window=_window_of(inputs["look"]) if inputs["look"] is not None else None,
        signals=from_plain(Signals(), inputs["heard"]),
    )
    (made,) = _engine([_Case(rules, known, inputs["nowS"])])
    return decided_text(made.transition, rules.explain(made.gates))


def _window_of(look: Mapping[str, Any]) -> EvidenceWindow:
    """Return a recorded window; those outside of Shadow have no pairs."""
    like = EvidenceWindow.nothing()
    return from_plain(like if look["pairs"] is None else replace(like, pairs=Pairs.nothing()), look)


def judge(rules: Rules, states: Mapping[str, Any]) -> list[Judgement]:
    """Return the judgement of each gate, in the order of the policy's levels."""
    return [gate.judge(states[name]) for name, gate in rules.gates.items()]


def decided_text(transition: Transition, verdicts: tuple[Verdict, ...]) -> str:
    """Return a decision as canonical JSON."""
    return canonical(
        {
            "signal": Signal(int(transition.signal)).name,
            "progress": transition.progress,
            "weight": float(transition.weight),
            "verdicts": verdicts,
        }
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """Inputs of the engine besides the policy and the time."""

    gates: Mapping[str, Any]
    progress: Progress
    window: EvidenceWindow | None
    signals: Signals


@dataclass(frozen=True, slots=True)
class _Made:
    """The gates' states and the transition that the engine makes of it."""

    gates: dict[str, Any]
    transition: Transition


@dataclass(frozen=True, slots=True)
class _Case:
    """One rollout to decide on."""

    rules: Rules
    known: _Known
    now_s: float

    @classmethod
    def of(cls, record: Record, inputs: DecisionInput) -> _Case:
        rules = Rules.of(record.policy, record.slo, inputs.skipped)
        gates = {name: record.gates.get(name) or gate.start() for name, gate in rules.gates.items()}
        if inputs.past is not None:
            gates = informed(rules.gates, gates, inputs.past)
        progress = record.progress
        if bool(progress.paused) != inputs.paused:
            progress = with_pause(progress, np.array(inputs.paused), inputs.now_s)
        return cls(rules, _Known(gates, progress, inputs.window, inputs.signals), inputs.now_s)

    def kind(self, arrays: list[NDArray[Any]]) -> Hashable:
        """Return what cases have in common that are decided at once; their arrays are appended to `arrays`."""
        # Equal policies have the same rules, which are derived once; to compare what they contain would take longer.
        return id(self.rules), self.now_s, taken_apart(self.known, arrays)

    def decide(self, known: _Known) -> _Made:
        """Return what the engine makes of this, or of as much of many rollouts, whose arrays have leading axes."""
        gates, progress = dict(known.gates), known.progress
        if known.window is not None:
            gates = {name: gate.update(known.gates[name], known.window) for name, gate in self.rules.gates.items()}
            progress = watch(progress, known.window, self.now_s)
        judged = judge(self.rules, gates)
        return _Made(gates, next_transition(self.rules.policy, progress, judged, known.signals, self.now_s))


def _engine(cases: Sequence[_Case]) -> list[_Made]:
    kinds: dict[Hashable, dict[int, list[NDArray[Any]]]] = {}
    for index, case in enumerate(cases):
        arrays: list[NDArray[Any]] = []
        kinds.setdefault(case.kind(arrays), {})[index] = arrays
    made: dict[int, _Made] = {}
    for alike in kinds.values():
        first = cases[next(iter(alike))]
        made |= zip(alike, at_once(first.decide, first.known, tuple(alike.values())), strict=True)
    return [
        _Made(*after_shadow(case.rules, made[index].gates, case.known.progress, made[index].transition))
        for index, case in enumerate(cases)
    ]


def after_shadow(
    rules: Rules, states: dict[str, Any], before: Progress, transition: Transition
) -> tuple[dict[str, Any], Transition]:
    """Return gates and transition, of a rollout that goes on from Shadow to callers as these begin with it.

    What failed in Shadow has harmed none of them.
    """
    progress = transition.progress
    if int(before.phase) != Phase.SHADOW or int(progress.phase) not in (Phase.PROGRESSING, Phase.BAKING):
        return states, transition
    going_on = {name: gate.after_shadow(states[name]) for name, gate in rules.gates.items()}
    harmless = replace(progress, bad=excess_of(judge(rules, going_on), progress))
    return going_on, replace(transition, progress=harmless)


def _weight(record: Record) -> int:
    return record.decisions[-1].weight if record.decisions else 0


def _written_down(
    record: Record, rules: Rules, inputs: DecisionInput, transition: Transition, encoded_inputs: str
) -> Record:
    verdicts = rules.explain(record.gates)
    signal = Signal(int(transition.signal))
    decision = Decision(
        sequence=record.sequence + 1,
        at_s=inputs.now_s,
        signal=signal.name,
        phase=Phase(int(transition.progress.phase)),
        weight=round(float(transition.weight)),
        actor=inputs.actor,
        reason="",
        message="",
        verdicts=verdicts,
        inputs=encoded_inputs,
        result=decided_text(transition, verdicts),
    )
    decisions = (*record.decisions, decision)[-MAX_DECISIONS:]
    return replace(record, sequence=decision.sequence, decisions=decisions)


def state_of(record: Record, revision: str) -> RolloutState:
    """Return the state of a record's rollout, for its model's status."""
    progress = record.progress
    return RolloutState(
        rollout=record.name,
        revision=revision,
        phase=Phase(int(progress.phase)),
        step=int(progress.step),
        sequence=record.sequence,
        paused=bool(progress.paused),
        quarantines=int(progress.quarantines),
        started_s=float(progress.started_s),
        since_s=float(progress.since_s),
        step_since_s=float(progress.step_since_s),
        resumed_s=float(progress.resumed_s),
        weight=_weight(record),
    )


def caught_up(record: Record, standing: RolloutState, actor: str = "segserve") -> Record:
    """Return the record in agreement with its model's status, which is written first and takes precedence.

    If the process stopped between the two writes, the inputs of its last decision are lost, and the record says so.
    `actor` is who caused what the status has more: a person who left a revision after its rollout.
    """
    if record.sequence >= standing.sequence and _agrees(record.progress, standing):
        return record
    progress = replace(
        record.progress,
        phase=np.array(standing.phase, np.int8),
        step=np.array(standing.step, np.int8),
        paused=np.array(standing.paused),
        quarantines=np.array(float(standing.quarantines)),
        started_s=np.array(standing.started_s),
        since_s=np.array(standing.since_s),
        step_since_s=np.array(standing.step_since_s),
        resumed_s=np.array(standing.resumed_s),
    )
    if record.sequence >= standing.sequence:
        return replace(record, progress=progress)
    lost = Decision(
        sequence=standing.sequence,
        at_s=standing.since_s,
        signal=LOST,
        phase=standing.phase,
        weight=standing.weight,
        actor=actor,
        reason=standing.reason,
        message=standing.message,
    )
    return replace(record, progress=progress, sequence=standing.sequence, decisions=(*record.decisions, lost))


def _agrees(progress: Progress, standing: RolloutState) -> bool:
    return (
        int(progress.phase) == standing.phase
        and int(progress.step) == standing.step
        and bool(progress.paused) == standing.paused
        and int(progress.quarantines) == standing.quarantines
        and float(progress.started_s) == standing.started_s
        and float(progress.since_s) == standing.since_s
        and float(progress.step_since_s) == standing.step_since_s
        and float(progress.resumed_s) == standing.resumed_s
    )
