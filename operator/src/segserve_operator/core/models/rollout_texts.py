"""Reason and message for every decision about a rollout and for everything that it can wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.models.observed import Roles
from segserve_operator.core.rollout.decisions import DecisionResult
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import RolloutState

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
    Signal.ADVANCE: ("StepDone", "the evidence allows the next weight"),
    Signal.CERTIFIED: ("Certified", "the evidence allows sending it all requests"),
    Signal.BAKED: ("Baked", "bakeTime has passed"),
}
WAITS: Final[Mapping[Wait, str]] = {
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


def explanation(before: RolloutState, result: DecisionResult, roles: Roles) -> tuple[str, str]:
    """Return why a rollout is in its state: one CamelCase word, and a sentence without figures that change."""
    if result.signal is Signal.BREACH:
        return _breach(result, roles)
    if result.signal is Signal.QUARANTINE:
        return _quarantine(result)
    phase = Phase(int(result.record.progress.phase))
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
    return _LATE if _is_late(result) else (result.wait.value, WAITS[result.wait])


def _is_late(result: DecisionResult) -> bool:
    progress = result.record.progress
    undecided_s = result.at_s - float(max(progress.started_s, progress.resumed_s))
    return result.wait is not Wait.PAUSED and undecided_s >= result.record.policy.deadline.total_seconds()


def _breach(result: DecisionResult, roles: Roles) -> tuple[str, str]:
    last = result.record.decisions[-1]
    for verdict in (*last.verdicts, *result.record.verdicts):
        if verdict.outcome is Outcome.BREACH:
            return verdict.reason, verdict.message
    failure = roles.candidate.failure if roles.candidate is not None else None
    return (failure.reason, failure.message) if failure is not None else ("Breach", "a gate has proof of a breach")


def _quarantine(result: DecisionResult) -> tuple[str, str]:
    if int(result.record.progress.quarantines) > result.record.policy.max_quarantines:
        return _TOO_OFTEN
    return "FailsWhileStableAnswers", "weight 0: it failed while stable answered; segserve's own requests find out more"
