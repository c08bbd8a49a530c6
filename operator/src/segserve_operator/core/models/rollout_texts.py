"""What people read of a rollout: one word and one sentence for each thing that can happen to it or hold it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase, Signal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.core.models.observed import Roles
    from segserve_operator.core.rollout.decisions import Made
    from segserve_operator.core.rollout.record import Standing

DEADLINE_PASSED: Final = "DeadlinePassed"
TOO_OFTEN: Final = "QuarantinedTooOften"
SPLIT_NOT_AS_WRITTEN: Final = "SplitNotAsWritten"
SPLIT_STORY: Final = (
    SPLIT_NOT_AS_WRITTEN,
    "the gateways count another split of requests than was written: somebody else changes routes or weights",
)
SIGNALS: Final[Mapping[Signal, tuple[str, str]]] = {
    Signal.CANCEL: ("Superseded", "another revision is wanted"),
    Signal.ABORT: ("Aborted", "a person ended it"),
    Signal.CONFIRMED: ("ProbesFailed", "it failed callers, and then our own requests too"),
    Signal.GIVE_UP: (DEADLINE_PASSED, "neither proved good nor bad until the deadline"),
    Signal.PROMOTE: ("PromotedEarly", "promoted before the gates had all the evidence"),
    Signal.RESUMED: ("ProbesAnswered", "our own requests were answered"),
    Signal.PROVED: ("Proved", "its servers hold it, and the gateways know them"),
    Signal.GOLDEN_PASSED: ("GoldenPassed", "labelled images were answered well enough"),
    Signal.ADVANCE: ("StepDone", "the evidence allows the next weight"),
    Signal.CERTIFIED: ("Certified", "the evidence allows all requests"),
    Signal.BAKED: ("Baked", "it was watched for as long as the policy says"),
}
WAITS: Final[Mapping[Wait, str]] = {
    Wait.PERSON: "the step ends when a person resumes it",
    Wait.TIME: "the step has not lasted for its minimum time",
    Wait.DATA: "the candidate has had too few requests to be judged",
    Wait.HARM: "at the next weight it might still do more harm than maxBadRequests allows",
    Wait.INCIDENT: "stable is out of bounds as well: an incident, not the candidate's fault",
    Wait.GATE: "a gate has no verdict yet",
    Wait.PAUSED: "a person holds it",
}
_LATE: Final = (DEADLINE_PASSED, "neither proved good nor bad until the deadline; it holds as the policy says")
_PENDING: Final = ("Proving", "its servers load it and prove it")
_PROBING: Final = ("Probing", "weight 0: our own requests find out whether it fails")
_TOO_OFTEN: Final = (TOO_OFTEN, "weight 0: quarantined more often than allowed; a person has to decide")


def story(before: Standing, made: Made, roles: Roles) -> tuple[str, str]:
    """Return why a rollout is where it is now: one CamelCase word, and a sentence without figures that change."""
    if made.signal is Signal.BREACH:
        return _breach(made, roles)
    if made.signal is Signal.QUARANTINE:
        return _quarantine(made)
    phase = Phase(int(made.record.progress.phase))
    if made.signal is not Signal.NONE and phase is not before.phase:
        return SIGNALS[made.signal]
    if phase is Phase.PENDING:
        return _PENDING
    if phase is Phase.QUARANTINED:
        return before.reason or _PROBING[0], before.message or _PROBING[1]
    if made.signal is not Signal.NONE:
        return SIGNALS[made.signal]
    if made.wait is Wait.NOTHING:
        return "", ""
    return _LATE if _is_late(made) else (made.wait.value, WAITS[made.wait])


def _is_late(made: Made) -> bool:
    progress = made.record.progress
    undecided_s = made.at_s - float(max(progress.started_s, progress.resumed_s))
    return made.wait is not Wait.PAUSED and undecided_s >= made.record.policy.deadline.total_seconds()


def _breach(made: Made, roles: Roles) -> tuple[str, str]:
    last = made.record.decisions[-1]
    for verdict in (*last.verdicts, *made.record.verdicts):
        if verdict.outcome is Outcome.BREACH:
            return verdict.reason, verdict.message
    failure = roles.candidate.failure if roles.candidate is not None else None
    return (failure.reason, failure.message) if failure is not None else ("Breach", "a gate has proof against it")


def _quarantine(made: Made) -> tuple[str, str]:
    if int(made.record.progress.quarantines) > made.record.policy.max_quarantines:
        return _TOO_OFTEN
    return "FailsWhileStableAnswers", "weight 0: it failed while stable answered; our own requests find out more"
