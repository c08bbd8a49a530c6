"""What people ask by annotations: when each verb means anything, and that it is dealt with once."""

from __future__ import annotations

import pytest

from segserve_operator.core.failure import FailureReason
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import Candidate, RoleHolder, Roles
from segserve_operator.core.world.requests import (
    MAX_HANDLED,
    PHASES,
    VERBS,
    RolloutRequest,
    next_request,
    refusal,
    with_handled,
)

OLD, NEW = "coins-1", "coins-2"
ROLLING = Roles(RoleHolder(OLD, "main", 0.0), Candidate(NEW, NEW, 0.0))
BAKING = Roles(RoleHolder(NEW, NEW, 0.0), previous=RoleHolder(OLD, "main", 0.0))
FAILED = Roles(RoleHolder(OLD, "main", 0.0), Candidate(NEW, None, 0.0, FailureReason("Breach", "it failed")))
GATES = ("errorRate", "night")


def state(phase: Phase) -> RolloutState:
    return RolloutState("coins-2-1", NEW, phase)


@pytest.mark.parametrize(
    ("text", "revision", "user"),
    [
        ("promote=coins-2@ada/3f2a1c", "coins-2", "ada"),
        ("promote=coins-2@ada@example.org/3f2a1c", "coins-2", "ada@example.org"),
        ("skip-gate=night@coins-2@ada/3f2a1c", "coins-2", "ada"),
        ("abort=coins-2@monday", "coins-2", ""),
        ("abort=coins-2", "coins-2", ""),
    ],
)
def test_a_request_names_its_revision_and_who_made_it(text: str, revision: str, user: str) -> None:
    request = RolloutRequest.of(text)

    assert (request.text, request.revision, request.user) == (text, revision, user)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("verb", sorted(PHASES))
def test_each_verb_is_taken_in_its_phases_and_refused_with_the_phase_in_others(verb: str, phase: Phase) -> None:
    value = f"night@{NEW}@1" if verb == "skip-gate" else f"{NEW}@1"
    roles = BAKING if phase is Phase.BAKING else ROLLING
    told = refusal(RolloutRequest(verb, value), state(phase), roles, GATES)

    if phase in PHASES[verb]:
        assert told is None
    elif state(phase).ended:
        assert told == f"{verb}: no rollout is in progress"
    else:
        assert told is not None
        assert phase.label in told


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "skip-gate"])
def test_a_word_about_another_revision_is_refused_and_both_are_named(verb: str) -> None:
    roles = FAILED if verb == "retry" else BAKING if verb == "rollback" else ROLLING
    told = refusal(RolloutRequest(verb, "coins-9@1"), state(Phase.PROGRESSING), roles, GATES)

    assert told is not None
    assert "'coins-9'" in told
    assert NEW in told


def test_a_gate_that_is_not_there_is_refused_and_those_that_are_are_named() -> None:
    told = refusal(RolloutRequest("skip-gate", f"day@{NEW}"), state(Phase.PROGRESSING), ROLLING, GATES)

    assert told == "skip-gate: unknown gate 'day'; known: errorRate, night"


def test_rollback_needs_a_former_revision_and_retry_a_failed_one() -> None:
    alone = Roles(RoleHolder(NEW, NEW, 0.0))

    assert "no former revision is kept" in (refusal(RolloutRequest("rollback", NEW), None, alone, ()) or "")
    assert refusal(RolloutRequest("retry", NEW), None, alone, ()) == "retry: no revision has failed"
    assert refusal(RolloutRequest("retry", NEW), state(Phase.ROLLED_BACK), FAILED, ()) is None


def test_the_text_that_a_gitops_loop_applies_again_is_no_new_request_and_a_new_token_is() -> None:
    annotations = {"segserve.dev/promote": f"{NEW}@1"}
    handled = with_handled((), RolloutRequest("promote", f"{NEW}@1"))

    assert next_request(annotations, ()) == RolloutRequest("promote", f"{NEW}@1")
    assert next_request(annotations, handled) is None
    assert next_request({"segserve.dev/promote": f"{NEW}@2"}, handled) is not None


def test_of_several_the_careful_one_comes_first() -> None:
    annotations = {f"segserve.dev/{verb}": NEW for verb in reversed(VERBS)}
    handled: tuple[str, ...] = ()
    order = []
    while (request := next_request(annotations, handled)) is not None:
        handled = with_handled(handled, request)
        order.append(request.verb)

    assert order == ["abort", "rollback", "pause", "promote", "resume", "skip-gate", "retry"]


def test_what_was_handled_is_bounded_and_the_newest_is_kept() -> None:
    handled: tuple[str, ...] = ()
    for token in range(100):
        handled = with_handled(handled, RolloutRequest("pause", f"{NEW}@{token}"))

    assert len(handled) == MAX_HANDLED
    assert handled[-1] == f"pause={NEW}@99"
