"""Explanations of decisions about rollouts: the reason and message of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from segserve_operator.core.advance.verdicts.golden import UNAVAILABLE
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.mask_agreement import CONFIDENCE_SHIFTED, MASKS_DIFFER
from segserve_operator.core.rollout.decisions import DecisionResult, with_verdicts
from segserve_operator.core.rollout.engine import MAX_QUARANTINES, Wait
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import Roles

DEADLINE_PASSED: Final = "DeadlinePassed"
TOO_OFTEN: Final = "QuarantinedTooOften"
SIGNALS: Final[Mapping[Signal, tuple[str, str]]] = {
    Signal.CANCEL: ("Superseded", "another revision is wanted"),
    Signal.ABORT: ("Aborted", "a person aborted it"),
    Signal.CONFIRMED: ("ProbesFailed", "it failed callers' requests and then segserve's own"),
    Signal.GIVE_UP: (DEADLINE_PASSED, "still undecided at the deadline"),
    Signal.PROMOTE: ("PromotedEarly", "promoted before the gates had all the evidence"),
    Signal.RESUMED: ("ProbesAnswered", "it answered segserve's own requests"),
    Signal.PROVED: ("Proved", "its servers have loaded and proved it, and every gateway knows them"),
    Signal.GOLDEN_PASSED: ("GoldenPassed", "the golden images were answered well enough"),
    Signal.SHADOW_BEGINS: ("ShadowBegun", "it gets copies of callers' requests; no caller gets its answers"),
    Signal.SHADOW_PASSED: ("ShadowPassed", "it answered copies of callers' requests no worse than stable"),
    Signal.SHADOW_OVER: ("ShadowOver", "shadow.maxDuration has passed; the steps begin with what is known"),
    Signal.JUDGED_WELL: ("JudgedWell", "it answered copies of callers' requests no worse than stable"),
    Signal.JUDGED_UNDECIDED: ("JudgedUndecided", "Shadow's time is over without proof for or against it"),
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


def hold_of(state: RolloutState) -> str:
    """Return why a rollout is held, one of `HELD`; an empty string if it is not."""
    if state.ended:
        return ""
    if state.paused:
        return Wait.PAUSED.value
    return state.reason if state.reason in HELD else ""


def explanation(before: RolloutState, result: DecisionResult, roles: Roles) -> tuple[str, str]:
    """Return why a rollout is in its state: one CamelCase word, and a sentence without figures that change."""
    if result.signal is Signal.BREACH:
        return _breach(result, roles)
    if result.signal is Signal.QUARANTINE:
        return _quarantine(result)
    phase = Phase(int(result.record.progress.phase))
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
    progress = result.record.progress
    undecided_s = result.at_s - float(max(progress.started_s, progress.resumed_s))
    if result.wait is not Wait.PAUSED and undecided_s >= result.record.policy.deadline.total_seconds():
        return _LATE
    if phase is Phase.SHADOW:
        return result.wait.value, _shadow(result)
    return result.wait.value, WAITS[result.wait]


def _is_unused(before: RolloutState, result: DecisionResult) -> bool:
    shadow, began_s = result.record.policy.shadow, max(before.step_since_s, before.resumed_s)
    return shadow is not None and result.at_s - began_s < shadow.max_duration.total_seconds()


def _shadow(result: DecisionResult) -> str:
    """Return how far Shadow is. Its figures change only with the writes of the record."""
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
    verdicts = with_verdicts(result.record, result.skipped).verdicts
    shifted = next((each.message for each in verdicts if each.reason == CONFIDENCE_SHIFTED), None)
    return shifted or "its masks differ from stable's: look at `segserve rollout sheet`, then resume or abort it"


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
        return f"undecided: no request was copied; `segserve rollout retry {model}` judges it again"
    verdicts = record.decisions[-1].verdicts
    worse = [each.gate for each in verdicts if each.outcome is not Outcome.PASS and each.progress >= LIKELY]
    why = f"it looks worse ({', '.join(worse)})" if worse else "they prove neither harm nor its absence"
    if any(each.reason == MASKS_DIFFER for each in verdicts):
        why = "its masks differ from stable's"
    elif any(each.reason == CONFIDENCE_SHIFTED for each in verdicts):
        why = "its scores differ from stable's"
    return (
        f"undecided: {compared} were compared, and {why}; `segserve rollout retry {model}` judges it again, "
        "`promote` rolls it out"
    )


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
    if int(result.record.progress.quarantines) > MAX_QUARANTINES:
        return _TOO_OFTEN
    return "FailsWhileStableAnswers", "weight 0: it failed while stable answered; segserve's own requests find out more"
