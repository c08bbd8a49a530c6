"""Events of models, pools and rollouts, and the reason and message for every decision about a rollout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final

from segserve_operator.api.meta import format_duration
from segserve_operator.core.advance.verdicts.golden import UNAVAILABLE
from segserve_operator.core.gates import ab_test
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.mask_agreement import CONFIDENCE_SHIFTED, MASKS_DIFFER
from segserve_operator.core.models.drift import DRIFTING
from segserve_operator.core.rollout.decisions import DecisionResult, with_verdicts
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import ModelStatus, ObservedCondition, Roles

DEADLINE_PASSED: Final = "DeadlinePassed"
TOO_OFTEN: Final = "QuarantinedTooOften"
SPLIT_NOT_AS_WRITTEN: Final = "SplitNotAsWritten"
SPLIT_EXPLANATION: Final = (
    SPLIT_NOT_AS_WRITTEN,
    "the gateways count a different split of requests than was written; something else changes routes or weights",
)
SIGNALS: Final[Mapping[Signal, tuple[str, str]]] = {
    Signal.CANCEL: ("Superseded", "another revision is wanted"),
    Signal.ABORT: ("Aborted", "a person aborted it"),
    Signal.CONFIRMED: ("ProbesFailed", "it failed callers' requests and then segserve's own"),
    Signal.GIVE_UP: (DEADLINE_PASSED, "still undecided at the deadline"),
    Signal.PROMOTE: ("PromotedEarly", "promoted before the gates had all the evidence"),
    Signal.RESUMED: ("ProbesAnswered", "it answered segserve's own requests"),
    Signal.PROVED: ("Proved", "its servers have loaded and proved it, and every gateway knows them"),
    Signal.GOLDEN_PASSED: ("GoldenPassed", "the golden images were answered well enough"),
    Signal.SHADOW_BEGINS: ("ShadowBegun", "it is asked copies of callers' requests; no caller has its answers"),
    Signal.SHADOW_PASSED: ("ShadowPassed", "it answered copies of callers' requests no worse than stable"),
    Signal.SHADOW_OVER: ("ShadowOver", "shadow.maxDuration has passed; the steps begin with what is known"),
    Signal.JUDGED_WELL: ("JudgedWell", "it answered copies of callers' requests no worse than stable"),
    Signal.JUDGED_UNDECIDED: ("JudgedUndecided", "Shadow's time is over without proof for or against it"),
    Signal.TESTED: ("Tested", "the time of the A/B test is over"),
    Signal.ADVANCE: ("StepDone", "the evidence allows the next weight"),
    Signal.CERTIFIED: ("Certified", "the evidence allows sending it all requests"),
    Signal.BAKED: ("Baked", "bakeTime has passed"),
}
UNUSED_SHADOW: Final = (
    "ShadowUnused",
    "no requests of callers came that could be copied; the steps begin without that evidence",
)
WAITS: Final[Mapping[Wait, str]] = {
    Wait.SERVERS: "too few servers answer for the next weight",
    Wait.PERSON: "the step waits for a person to resume it",
    Wait.TIME: "the step has not reached its minDuration",
    Wait.DATA: "the candidate has had too few requests for a verdict",
    Wait.HARM: "at the next weight it could still do more harm than maxBadRequests allows",
    Wait.INCIDENT: "stable misses its bounds as well: an incident, not the candidate's fault",
    Wait.GATE: "a gate has no verdict yet",
    Wait.PAUSED: "a person has paused it",
}
_LATE: Final = (DEADLINE_PASSED, "still undecided at the deadline; it holds as the policy says")
_PENDING: Final = ("Proving", "its servers are loading and proving it")
_PROBING: Final = ("Probing", "weight 0: segserve's own requests find out whether it fails")
_TOO_OFTEN: Final = (TOO_OFTEN, "weight 0: quarantined more often than maxQuarantines; a person has to decide")
HELD: Final = frozenset({Wait.INCIDENT, Wait.PERSON, Wait.PAUSED, DEADLINE_PASSED, TOO_OFTEN})
"""Reasons that hold a rollout until a person acts or an incident is over."""
LIKELY: Final = 0.5
"""Share of the evidence for a rollback from which on a candidate looks worse."""
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
        # Most of what stalls is degraded, too, for the same reason.
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
        yield Event("Normal", "RolledBack", f"{now.revision} gets all requests again; {was.revision} stays loaded")
    else:
        kept = f"; {was.revision} stays loaded" if was is not None else ""
        yield Event("Normal", "Promoted", f"{now.revision} in group {now.group} gets all requests{kept}")


def explanation(before: RolloutState, result: DecisionResult, roles: Roles) -> tuple[str, str]:
    """Return why a rollout is in its state: one CamelCase word, and a sentence without figures that change."""
    if result.signal is Signal.BREACH:
        return _breach(result, roles)
    if result.signal is Signal.QUARANTINE:
        return _quarantine(result)
    phase = Phase(int(result.record.progress.phase))
    if result.signal is Signal.TESTED:
        return _tested(result)
    if phase is Phase.JUDGED:
        return SIGNALS[result.signal][0], _judged(result)
    if result.signal is Signal.SHADOW_OVER and _is_unused(before, result):
        return UNUSED_SHADOW
    if result.signal is not Signal.NONE and phase is not before.phase:
        return SIGNALS[result.signal]
    if phase is Phase.PENDING:
        return _PENDING
    if phase is Phase.QUARANTINED:
        return before.reason or _PROBING[0], before.message or _PROBING[1]
    if result.signal is not Signal.NONE:
        return SIGNALS[result.signal]
    if result.wait is Wait.NOTHING:
        return "", ""
    return _waiting(result, phase)


def _waiting(result: DecisionResult, phase: Phase) -> tuple[str, str]:
    if _is_late(result):
        return _LATE
    if phase is Phase.SHADOW:
        return result.wait.value, _shadow(result)
    if result.wait is Wait.TIME and result.record.policy.ab_test is not None and phase is Phase.PROGRESSING:
        return result.wait.value, "both revisions get callers by id until the A/B test has had its time"
    return result.wait.value, WAITS[result.wait]


def _is_unused(before: RolloutState, result: DecisionResult) -> bool:
    shadow, began_s = result.record.policy.shadow, max(before.step_since_s, before.resumed_s)
    return shadow is not None and result.at_s - began_s < shadow.max_duration.total_seconds()


def _shadow(result: DecisionResult) -> str:
    """Return how far Shadow is. Its figures change with the writes of the record alone."""
    compared, shadow = int(result.record.progress.seen), result.record.policy.shadow
    few = shadow is not None and compared < shadow.min_requests
    counted = f"{compared} of {shadow.min_requests}" if shadow is not None and few else f"{compared}"
    text = f"Shadow: {counted} requests compared, no caller has its answers"
    if result.wait is Wait.PERSON:
        return f"{text}; {_held_by(result)}"
    if result.wait is Wait.HARM:
        return f"{text}; it could still be worse than tolerated"
    return text if result.wait is Wait.DATA and few else f"{text}; {WAITS[result.wait]}"


def _held_by(result: DecisionResult) -> str:
    """Return what a person has to decide about in Shadow."""
    verdicts = with_verdicts(result.record, result.skipped).verdicts
    shifted = next((each.message for each in verdicts if each.reason == CONFIDENCE_SHIFTED), None)
    return shifted or "its masks differ from stable's: look at `segserve rollout sheet`, then resume or abort it"


def _tested(result: DecisionResult) -> tuple[str, str]:
    """Return the result of an A/B test: its reason, and what was measured, for how long and how sure."""
    record, test = result.record, result.record.policy.ab_test
    verdict = next(each for each in record.decisions[-1].verdicts if each.gate == ab_test.NAME)
    weight, duration = (test.weight, format_duration(test.duration)) if test is not None else (0, "")
    text = f"tested with {weight} % of ids for {duration}: {verdict.message}; stable has all requests again"
    return verdict.reason, f"{text}; `segserve rollout promote {record.model}` rolls it out"


def _judged(result: DecisionResult) -> str:
    """Return the verdict of a rollout that promotes nothing by itself, what it rests on, and what a person may do."""
    record, model = result.record, result.record.model
    compared = f"{int(record.progress.seen):,} copies of callers' requests"
    if result.signal is Signal.JUDGED_WELL:
        return (
            f"judged well: in {compared} each gate bounds its harm within tolerance; "
            f"`segserve rollout promote {model}` rolls it out"
        )
    if not record.progress.seen:
        return f"undecided: none of callers' requests was copied; `segserve rollout retry {model}` judges it anew"
    verdicts = record.decisions[-1].verdicts
    worse = [each.gate for each in verdicts if each.outcome is not Outcome.PASS and each.progress >= LIKELY]
    why = f"it looks worse ({', '.join(worse)})" if worse else "they prove neither harm nor its absence"
    if any(each.reason == MASKS_DIFFER for each in verdicts):
        why = "its masks differ from stable's"
    elif any(each.reason == CONFIDENCE_SHIFTED for each in verdicts):
        why = "its scores differ from stable's"
    return (
        f"undecided: {compared} were compared, and {why}; `segserve rollout retry {model}` judges it anew, "
        "`promote` rolls it out"
    )


def _is_late(result: DecisionResult) -> bool:
    progress = result.record.progress
    undecided_s = result.at_s - float(max(progress.started_s, progress.resumed_s))
    return result.wait is not Wait.PAUSED and undecided_s >= result.record.policy.longest.total_seconds()


def _breach(result: DecisionResult, roles: Roles) -> tuple[str, str]:
    last = result.record.decisions[-1]
    for verdict in (*last.verdicts, *result.record.verdicts):
        if verdict.outcome is Outcome.BREACH:
            return verdict.reason, verdict.message
    failure = roles.candidate.failure if roles.candidate is not None else None
    if failure is not None:
        return failure.reason, failure.message
    for verdict in result.record.verdicts:
        if verdict.reason == UNAVAILABLE:
            return verdict.reason, verdict.message
    return "Breach", "a gate has proof of a breach"


def _quarantine(result: DecisionResult) -> tuple[str, str]:
    if int(result.record.progress.quarantines) > result.record.policy.max_quarantines:
        return _TOO_OFTEN
    return "FailsWhileStableAnswers", "weight 0: it failed while stable answered; segserve's own requests find out more"


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
        former = before if same else None
        events.append(
            _changes(former or RolloutState(after.rollout, after.revision), after, verdicts, new=former is None)
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
        case Phase.SHADOW:
            text = f"{revision} is asked copies of callers' requests, and no caller gets its answers"
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
