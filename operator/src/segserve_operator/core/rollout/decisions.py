"""One decision over one rollout: from its record and what is new to the next record. What it saw goes into it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segserve_operator.api.segmentation_rollout import MAX_DECISIONS
from segserve_operator.core.evidence import Look
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.rollout.engine import WAITS, Heard, Progress, Wait, decide, watch, with_pause
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.plain import canonical, from_plain
from segserve_operator.core.rollout.policy import engine_policy
from segserve_operator.core.rollout.record import Decision, Record, Standing
from segserve_operator.core.rollout.rows import kept, row_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
    from segserve_operator.core.evidence import Judgement
    from segserve_operator.core.gates.base import MeasuredGate, Verdict
    from segserve_operator.core.rollout.engine import Decided, Policy

LOST: Final = "LOST"
"""The signal of a decision whose process ended before it was written down."""


@dataclass(frozen=True, slots=True)
class News:
    """What a decision sees beside the record: a look at the gateways (or none), what was heard, what people want.

    `skipped` are the gates put aside, `paused` whether a person holds it. `actor` is who asked, for the record.
    """

    now_s: float
    heard: Heard = field(default_factory=Heard)
    look: Look | None = None
    paused: bool = False
    skipped: tuple[str, ...] = ()
    actor: str = "segserve"


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it: the record with all that was seen, the outcome of the engine, and whether anything changed."""

    record: Record
    decided: Decided
    changed: bool
    skipped: tuple[str, ...]
    at_s: float

    @property
    def signal(self) -> Signal:
        """What the engine made of all that it saw."""
        return Signal(int(self.decided.signal))

    @property
    def wait(self) -> Wait:
        """Why the rollout does not go on now."""
        return WAITS[int(self.decided.waits_for)]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a rollout's policy amounts to: the engine's numbers and the gates that judge what is measured."""

    policy: Policy
    gates: Mapping[str, MeasuredGate[Any]]

    @classmethod
    def of(cls, policy: RolloutPolicy, slo: Slo, skipped: tuple[str, ...] = ()) -> Rules:
        """Return the rules without the gates that were put aside; the others' shares of alpha stay."""
        gates, engine = measured_gates(policy, slo), engine_policy(policy, slo)
        kept = [name not in skipped for name in gates]
        return cls(
            policy=replace(
                engine,
                levels=tuple(compress(engine.levels, kept)),
                tolerances=tuple(compress(engine.tolerances, kept)),
            ),
            gates={name: gate for name, gate in gates.items() if name not in skipped},
        )

    def explain(self, states: Mapping[str, Any]) -> tuple[Verdict, ...]:
        """Return what each gate says."""
        named = zip(self.gates.items(), self.policy.levels, strict=True)
        return tuple(gate.explain(states[name], level) for (name, gate), level in named if name in states)


def make(record: Record, news: News) -> Made:
    """Take in what is new, and decide."""
    rules = Rules.of(record.policy, record.slo, news.skipped)
    before = {name: record.gates.get(name) or gate.start() for name, gate in rules.gates.items()}
    progress = with_pause(record.progress, np.array(news.paused), news.now_s)
    states, decided = _engine(rules, before, progress, news.look, news.heard, news.now_s)
    signal = Signal(int(decided.signal))
    changed = signal is not Signal.NONE or bool(record.progress.paused) != news.paused
    rows = record.rows
    if news.look is not None:
        rows = kept(rows, row_of(news.look, news.now_s, _weight(record)))
    after = replace(record, progress=decided.progress, gates={**record.gates, **states}, rows=rows)
    if changed:
        after = _written_down(after, rules, news, decided, _saw(before, progress, news))
    return Made(after, decided, changed, news.skipped, news.now_s)


def told(made: Made, reason: str, message: str) -> Made:
    """Return it with what people read of the decision: one CamelCase word, and a sentence."""
    *former, last = made.record.decisions
    decision = replace(last, reason=reason, message=message)
    return replace(made, record=replace(made.record, decisions=(*former, decision)))


def with_verdicts(record: Record, skipped: tuple[str, ...]) -> Record:
    """Return a record in which the measured gates say what they make of all evidence so far."""
    measured = Rules.of(record.policy, record.slo, skipped).explain(record.gates)
    names = {verdict.gate for verdict in measured}
    return replace(record, verdicts=(*measured, *(asked for asked in record.verdicts if asked.gate not in names)))


def again(decision: Decision, policy: RolloutPolicy, slo: Slo) -> str:
    """Return what the engine decides today on all that a decision saw: what `decided_text` gave then.

    Raises ValueError where what it saw cannot be read.
    """
    seen = json.loads(decision.saw)
    rules = Rules.of(policy, slo, tuple(seen["skipped"]))
    before = {name: from_plain(gate.start(), seen["gates"][name]) for name, gate in rules.gates.items()}
    look = from_plain(Look.nothing(), seen["look"]) if seen["look"] is not None else None
    progress = from_plain(Progress.begun(0.0), seen["progress"])
    states, decided = _engine(rules, before, progress, look, from_plain(Heard(), seen["heard"]), seen["nowS"])
    return decided_text(decided, rules.explain(states))


def judge(rules: Rules, states: Mapping[str, Any]) -> list[Judgement]:
    """Return what each gate makes of its state, in the order of the policy's levels."""
    return [gate.judge(states[name]) for name, gate in rules.gates.items()]


def decided_text(decided: Decided, verdicts: tuple[Verdict, ...]) -> str:
    """Return a decision as canonical JSON."""
    return canonical(
        {
            "signal": Signal(int(decided.signal)).name,
            "progress": decided.progress,
            "weight": float(decided.weight),
            "verdicts": verdicts,
        }
    )


def _engine(
    rules: Rules, before: Mapping[str, Any], progress: Progress, look: Look | None, heard: Heard, now_s: float
) -> tuple[dict[str, Any], Decided]:
    states = dict(before)
    if look is not None:
        states = {name: gate.update(before[name], look) for name, gate in rules.gates.items()}
        progress = watch(progress, look, now_s)
    return states, decide(rules.policy, progress, judge(rules, states), heard, now_s)


def _saw(before: Mapping[str, Any], progress: Progress, news: News) -> str:
    return canonical(
        {
            "gates": before,
            "progress": progress,
            "look": news.look,
            "heard": news.heard,
            "skipped": news.skipped,
            "nowS": news.now_s,
        }
    )


def _weight(record: Record) -> int:
    return record.decisions[-1].weight if record.decisions else 0


def _written_down(record: Record, rules: Rules, news: News, decided: Decided, saw: str) -> Record:
    verdicts = rules.explain(record.gates)
    signal = Signal(int(decided.signal))
    decision = Decision(
        sequence=record.sequence + 1,
        at_s=news.now_s,
        signal=signal.name,
        phase=Phase(int(decided.progress.phase)),
        weight=round(float(decided.weight)),
        actor=news.actor,
        reason="",
        message="",
        verdicts=verdicts,
        saw=saw,
        made=decided_text(decided, verdicts),
    )
    decisions = (*record.decisions, decision)[-MAX_DECISIONS:]
    return replace(record, sequence=decision.sequence, decisions=decisions)


def standing_of(record: Record, revision: str) -> Standing:
    """Return where a record's rollout stands, for its model's status."""
    progress = record.progress
    return Standing(
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


def caught_up(record: Record, standing: Standing) -> Record:
    """Return a record that agrees with what its model's status says, which is written first and decides.

    Where a process ended between the two, what its last decision saw is lost, and the record says so.
    """
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
        actor="segserve",
        reason=standing.reason,
        message=standing.message,
    )
    return replace(record, progress=progress, sequence=standing.sequence, decisions=(*record.decisions, lost))
