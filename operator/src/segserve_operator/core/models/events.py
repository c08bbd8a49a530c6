"""Events of models, pools and rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Final

from segserve_operator.core.advance.explanations import DEADLINE_PASSED, SIGNALS, WAITS, hold_of
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.models.drift import DRIFTING
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import ModelStatus, ObservedCondition, Roles

_NUMBERS: Final = 6
_HOUR_S: Final = 3600
_MINUTE_S: Final = 60


def status_events(before: ModelStatus, after: ModelStatus) -> tuple[Event, ...]:
    """Return the events of a change of status; none if only messages differ."""
    moves = _moves(before.roles, after.roles)
    if before.rollout != after.rollout:
        # The rollout emits events about its own moves, with their reasons.
        moves = (event for event in moves if event.reason not in ("Promoted", "RolledBack"))
    return (*moves, *condition_events(before.conditions, after.conditions))


def condition_events(before: Iterable[ObservedCondition], after: Iterable[ObservedCondition]) -> Iterator[Event]:
    """Yield a warning for each new problem, and an event when readiness returns."""
    before, after = tuple(before), tuple(after)
    former_by_type = {condition.type: condition for condition in before}
    degraded = next((each.reason for each in after if each.type == "Degraded"), "")
    for condition in after:
        former = former_by_type.get(condition.type)
        status, reason = (former.status, former.reason) if former is not None else ("", "")
        # Most of what stalls is degraded as well, for the same reason.
        is_problem = condition.type == "Degraded" or (condition.type == "Stalled" and condition.reason != degraded)
        if is_problem and condition.status == "True" and (status, reason) != (condition.status, condition.reason):
            yield Event("Warning", condition.reason, condition.message)
        if condition.type == "Ready" and condition.status == "True" and status != "True":
            yield Event("Normal", "Ready", condition.message)
    yield from drift_events(before, after)


def drift_events(before: Iterable[ObservedCondition], after: Iterable[ObservedCondition]) -> Iterator[Event]:
    """Yield a warning when drift is found or has another reason, and an event when it is over."""
    former = next((each for each in before if each.type == DRIFTING and each.status == "True"), None)
    for condition in after:
        if condition.type != DRIFTING:
            continue
        if condition.status == "True" and (former is None or former.reason != condition.reason):
            yield Event("Warning", condition.reason, condition.message)
        if condition.status == "False" and former is not None:
            yield Event("Normal", "DriftOver", condition.message)


def _moves(before: Roles, after: Roles) -> Iterator[Event]:
    if after.candidate is not None and after.candidate.group is not None:
        same = before.candidate is not None and before.candidate.revision == after.candidate.revision
        if not same or (before.candidate is not None and before.candidate.group != after.candidate.group):
            text = f"{after.candidate.revision} is being proved in group {after.candidate.group}"
            yield Event("Normal", "CandidateStarted", text)
    was, now = before.stable, after.stable
    if now is None or now == was:
        return
    if was is not None and now.revision == was.revision:
        yield Event("Normal", "Settled", f"{now.revision} moved to group {now.group}")
    elif before.previous is not None and before.previous.revision == now.revision and was is not None:
        kept = f"; {was.revision} stays loaded" if after.previous is not None else ""
        yield Event("Normal", "RolledBack", f"{now.revision} gets all requests again{kept}")
    else:
        kept = f"; {was.revision} stays loaded" if was is not None else ""
        yield Event("Normal", "Promoted", f"{now.revision} in group {now.group} gets all requests{kept}")


def rollout_events(
    before: RolloutState | None, after: RolloutState | None, verdicts: Sequence[Verdict]
) -> tuple[Event, ...]:
    """Return the events of a change; none if both states are equal.

    `verdicts` are from the time of the change. None means no rollout; one that disappears before its end, or is
    replaced by another, was cancelled.
    """
    same = before is not None and after is not None and before.rollout == after.rollout
    events: list[Iterable[Event]] = []
    if before is not None and not same and not before.ended:
        events.append((_cancelled(replace(before, message=SIGNALS[Signal.CANCEL][1])),))
    if after is not None:
        former = before if same else None
        events.append(
            _changes(former or RolloutState(after.rollout, after.revision), after, verdicts, new=former is None)
        )
    return tuple(dict.fromkeys(chain.from_iterable(events)))


def _changes(before: RolloutState, after: RolloutState, verdicts: Sequence[Verdict], *, new: bool) -> Iterator[Event]:
    if new:
        yield Event("Normal", "RolloutStarted", f"rollout {after.rollout}: {after.revision} has started")
    if after.reason == DEADLINE_PASSED != before.reason:
        yield Event("Warning", "DeadlinePassed", f"{after.revision} is undecided after {_age(after)}{_because(after)}")
    if after.phase is not before.phase:
        yield from _entered(before, after, verdicts)
    elif after.phase is Phase.PROGRESSING and (after.step, after.weight) != (before.step, before.weight):
        yield _step_reached(after)
    yield from _held(before, after)


def _entered(before: RolloutState, after: RolloutState, verdicts: Sequence[Verdict]) -> Iterator[Event]:
    revision, age = after.revision, _age(after)
    match after.phase:
        case Phase.SHADOW:
            text = f"{revision} gets copies of callers' requests; no caller gets its answers"
            yield Event("Normal", "ShadowStarted", text)
        case Phase.PROGRESSING if before.phase is Phase.QUARANTINED:
            share = f"{after.weight} % of callers' requests"
            text = f"{revision} answers segserve's own requests and gets {share} again"
            yield Event("Normal", "Resumed", text)
        case Phase.PROGRESSING:
            yield _step_reached(after)
        case Phase.QUARANTINED:
            number = max(after.quarantines, 1)
            text = f"{revision} gets no requests for the time being (quarantine {number}){_because(after)}"
            yield Event("Warning", "Quarantined", text)
        case Phase.BAKING:
            part = "all" if after.weight == 100 else f"{after.weight} % of"
            text = f"{revision} gets {part} requests after {age} and is being watched{_because(after)}"
            yield Event("Normal", "Promoted", text)
        case Phase.SUCCEEDED:
            yield Event("Normal", "Succeeded", f"{revision} is stable; its rollout took {age}")
        case Phase.ROLLED_BACK:
            lost = f" at {before.weight} %" if before.weight else ""
            text = f"{revision} was rolled back after {age}{lost}{_proof(verdicts) or _because(after)}"
            yield Event("Warning", "RolledBack", text)
        case Phase.CANCELLED:
            yield _cancelled(after)
        case Phase.JUDGED:
            yield Event("Normal", Phase.JUDGED.label, f"{revision} has a verdict after {age}{_because(after)}")


def _held(before: RolloutState, after: RolloutState) -> Iterator[Event]:
    if after.ended:
        return
    was, now = hold_of(before), hold_of(after)
    if now and now not in (was, DEADLINE_PASSED):
        why = (
            after.message
            if after.message and after.reason == now
            else (WAITS[Wait.PAUSED] if now == Wait.PAUSED else now)
        )
        yield Event("Warning", "Held", f"{after.revision} stays at {after.weight} %: {why}")
    elif was and not now and after.phase is before.phase and after.step == before.step:
        yield Event("Normal", "Resumed", f"{after.revision} continues at {after.weight} %")


def _step_reached(after: RolloutState) -> Event:
    return Event("Normal", "StepReached", f"{after.revision} gets {after.weight} % of requests (step {after.step + 1})")


def _cancelled(state: RolloutState) -> Event:
    text = f"the rollout of {state.revision} was cancelled{_because(state)}"
    return Event("Normal", "Cancelled", text)


def _proof(verdicts: Iterable[Verdict]) -> str:
    breaches = {each.gate: each for each in verdicts if each.outcome is Outcome.BREACH}.values()
    text = "; ".join(f"{each.gate}: {each.message}{_figures(each.numbers)}" for each in breaches)
    return f": {text}" if text else ""


def _figures(numbers: Mapping[str, float]) -> str:
    text = ", ".join(f"{name} {number:.4g}" for name, number in islice(numbers.items(), _NUMBERS))
    return f" ({text})" if text else ""


def _because(state: RolloutState) -> str:
    return f": {state.message}" if state.message else ""


def _age(state: RolloutState) -> str:
    seconds = round(max(state.since_s - state.started_s, 0.0))
    if seconds < _MINUTE_S:
        return f"{seconds} s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S} min {seconds % _MINUTE_S} s"
    return f"{seconds // _HOUR_S} h {seconds % _HOUR_S // _MINUTE_S} min"
