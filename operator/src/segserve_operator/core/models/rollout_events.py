"""Events of a rollout, derived from its states before and after a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final

from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.models.events import Event
from segserve_operator.core.models.rollout_texts import DEADLINE_PASSED, SPLIT_NOT_AS_WRITTEN, TOO_OFTEN, WAITS
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState

HELD: Final = frozenset({Wait.INCIDENT, Wait.PERSON, Wait.PAUSED, DEADLINE_PASSED, TOO_OFTEN})
"""Reasons that hold a rollout until a person acts or an incident is over."""

_NUMBERS: Final = 6
_HOUR_S: Final = 3600
_MINUTE_S: Final = 60


def rollout_events(
    before: RolloutState | None, after: RolloutState | None, verdicts: Sequence[Verdict]
) -> tuple[Event, ...]:
    """Return the events of a change; none if both states are equal.

    `verdicts` are those at the time of the change. None means no rollout; one that disappears before its end, or is
    replaced by another, was cancelled.
    """
    same = before is not None and after is not None and before.rollout == after.rollout
    events: list[Iterable[Event]] = []
    if before is not None and not same and not before.ended:
        events.append((_cancelled(before),))
    if after is not None:
        known = before if same else None
        events.append(
            _changes(known or RolloutState(after.rollout, after.revision), after, verdicts, new=known is None)
        )
    return tuple(dict.fromkeys(chain.from_iterable(events)))


def hold_of(state: RolloutState) -> str:
    """Return why a rollout is held, one of `HELD`; an empty string if it is not."""
    if state.ended:
        return ""
    if state.paused:
        return Wait.PAUSED.value
    return state.reason if state.reason in HELD else ""


def _changes(before: RolloutState, after: RolloutState, verdicts: Sequence[Verdict], *, new: bool) -> Iterator[Event]:
    if new:
        yield Event("Normal", "RolloutStarted", f"rollout {after.rollout}: {after.revision} has started")
    if after.reason == DEADLINE_PASSED != before.reason:
        yield Event("Warning", "DeadlinePassed", f"{after.revision} is undecided after {_age(after)}{_because(after)}")
    if after.reason == SPLIT_NOT_AS_WRITTEN != before.reason:
        yield Event("Warning", SPLIT_NOT_AS_WRITTEN, _split(after, verdicts))
    if after.phase is not before.phase:
        yield from _entered(before, after, verdicts)
    elif after.phase is Phase.PROGRESSING and (after.step, after.weight) != (before.step, before.weight):
        yield _step_reached(after)
    yield from _held(before, after)


def _entered(before: RolloutState, after: RolloutState, verdicts: Sequence[Verdict]) -> Iterator[Event]:
    revision, age = after.revision, _age(after)
    match after.phase:
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


def _split(after: RolloutState, verdicts: Iterable[Verdict]) -> str:
    verdict = next((verdict for verdict in verdicts if verdict.reason == SPLIT_NOT_AS_WRITTEN), None)
    figures = f": {verdict.message}{_figures(verdict.numbers)}" if verdict is not None else _because(after)
    return f"{after.revision} does not get the {after.weight} % of requests that it should{figures}"


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
