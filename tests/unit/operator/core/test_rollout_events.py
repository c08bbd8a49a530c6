"""What people are told of a rollout, standing by standing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segserve_operator.core.advance.explanations import hold_of
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.models.events import rollout_events
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState

PENDING = RolloutState("coins-7f", "coins-r2", started_s=1000.0, since_s=1000.0)
STEP = replace(PENDING, phase=Phase.PROGRESSING, step=0, weight=5, since_s=1010.0)
LATER = replace(STEP, step=1, weight=25)
QUARANTINED = replace(LATER, phase=Phase.QUARANTINED, weight=0, quarantines=1, since_s=1020.0)
BAKING = replace(LATER, phase=Phase.BAKING, weight=100, since_s=1125.0)
BREACH = Verdict("errorRate", Outcome.BREACH, "Worse", "9 of 60 failed", 1.0, {"candidate": 0.15, "stable": 0.00123456})
QUIET = Verdict("latency", Outcome.UNDECIDED, "NoData", "nothing yet")


def told(before: RolloutState | None, after: RolloutState | None, *verdicts: Verdict) -> list[str]:
    return [f"{event.reason}: {event.message}" for event in rollout_events(before, after, verdicts)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, PENDING, ["RolloutStarted: rollout coins-7f: coins-r2 has started"]),
        (PENDING, STEP, ["StepReached: coins-r2 gets 5 % of requests (step 1)"]),
        (STEP, LATER, ["StepReached: coins-r2 gets 25 % of requests (step 2)"]),
        (
            LATER,
            replace(QUARANTINED, message="3 failures in a row while stable answered"),
            [
                "Quarantined: coins-r2 gets no requests for the time being (quarantine 1): "
                "3 failures in a row while stable answered"
            ],
        ),
        (
            QUARANTINED,
            replace(LATER, quarantines=1),
            ["Resumed: coins-r2 answers segserve's own requests and gets 25 % of callers' requests again"],
        ),
        (LATER, BAKING, ["Promoted: coins-r2 gets all requests after 2 min 5 s and is being watched"]),
        (
            BAKING,
            replace(BAKING, phase=Phase.SUCCEEDED, since_s=8260.0),
            ["Succeeded: coins-r2 is stable; its rollout took 2 h 1 min"],
        ),
        (STEP, replace(STEP, phase=Phase.CANCELLED, weight=0), ["Cancelled: the rollout of coins-r2 was cancelled"]),
        (
            replace(STEP, message="its servers are loading and proving it"),
            None,
            ["Cancelled: the rollout of coins-r2 was cancelled: another revision is wanted"],
        ),
        (STEP, replace(STEP, paused=True), ["Held: coins-r2 stays at 5 %: a person has paused it"]),
        (replace(STEP, paused=True), STEP, ["Resumed: coins-r2 continues at 5 %"]),
        (
            STEP,
            replace(STEP, reason="Incident", message="stable fails 7 %"),
            ["Held: coins-r2 stays at 5 %: stable fails 7 %"],
        ),
        (
            replace(STEP, reason="Incident"),
            replace(STEP, reason="TooFewRequests"),
            ["Resumed: coins-r2 continues at 5 %"],
        ),
        (replace(STEP, reason="Incident"), LATER, ["StepReached: coins-r2 gets 25 % of requests (step 2)"]),
    ],
)
def test_each_change_is_told_in_one_sentence(
    before: RolloutState, after: RolloutState | None, expected: list[str]
) -> None:
    assert told(before, after) == expected


@pytest.mark.parametrize("state", [None, PENDING, STEP, QUARANTINED, BAKING, replace(STEP, paused=True)])
def test_nothing_is_told_where_nothing_changed(state: RolloutState | None) -> None:
    assert told(state, state, BREACH) == []


@pytest.mark.parametrize("reason", ["MinimumTime", "TooFewRequests", "HarmNotBounded", "GateUndecided", ""])
def test_what_passes_by_itself_is_no_news(reason: str) -> None:
    assert told(STEP, replace(STEP, reason=reason, message="4 of 10 requests")) == []


def test_a_rollback_says_why_with_the_numbers_of_the_gates_that_breach_alone() -> None:
    after = replace(LATER, phase=Phase.ROLLED_BACK, weight=0, since_s=1040.0, message="9 of 60 failed")
    assert told(LATER, after, BREACH, QUIET) == [
        "RolledBack: coins-r2 was rolled back after 40 s at 25 %: errorRate: 9 of 60 failed "
        "(candidate 0.15, stable 0.001235)"
    ]


def test_a_deadline_is_told_beside_what_it_does() -> None:
    after = replace(STEP, phase=Phase.ROLLED_BACK, weight=0, since_s=4600.0, reason="DeadlinePassed")
    assert told(STEP, after) == [
        "DeadlinePassed: coins-r2 is undecided after 1 h 0 min",
        "RolledBack: coins-r2 was rolled back after 1 h 0 min at 5 %",
    ]


def test_a_rollback_without_a_verdict_says_what_the_standing_says() -> None:
    after = replace(LATER, phase=Phase.ROLLED_BACK, weight=0, since_s=1040.0, message="a person aborted it")
    assert told(LATER, after, QUIET) == ["RolledBack: coins-r2 was rolled back after 40 s at 25 %: a person aborted it"]


def test_a_deadline_that_holds_says_so_once() -> None:
    held = replace(STEP, reason="DeadlinePassed", since_s=4600.0)
    assert [text.partition(":")[0] for text in told(STEP, held)] == ["DeadlinePassed"]
    assert told(held, held) == []


def test_a_new_revision_in_mid_rollout_cancels_and_begins() -> None:
    other = RolloutState("coins-80", "coins-r3", started_s=1100.0, since_s=1100.0)
    assert [text.partition(":")[0] for text in told(LATER, other)] == ["Cancelled", "RolloutStarted"]
    ended = replace(LATER, phase=Phase.ROLLED_BACK)
    assert [text.partition(":")[0] for text in told(ended, other)] == ["RolloutStarted"]


def test_a_candidate_that_was_quarantined_too_often_waits_for_a_person() -> None:
    after = replace(QUARANTINED, reason="QuarantinedTooOften", message="weight 0: a person has to decide")
    assert [text.partition(":")[0] for text in told(LATER, after)] == ["Quarantined", "Held"]


def test_what_is_bad_is_a_warning() -> None:
    kinds = {
        event.reason: event.kind
        for after in (QUARANTINED, BAKING, replace(LATER, paused=True), replace(LATER, phase=Phase.ROLLED_BACK))
        for event in rollout_events(LATER, after, ())
    }
    assert kinds == {"Quarantined": "Warning", "Promoted": "Normal", "Held": "Warning", "RolledBack": "Warning"}


def test_what_has_ended_is_not_held() -> None:
    assert hold_of(replace(STEP, paused=True)) == "Paused"
    assert hold_of(replace(STEP, paused=True, phase=Phase.CANCELLED)) == ""
