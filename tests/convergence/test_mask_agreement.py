"""The gate `maskAgreement` in memory: answers that differ hold a rollout in Shadow, roll it back, or are noted."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import pytest

from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout
from segserve_operator.api.rollout_policy import ErrorRateGate, LatencyGate, MaskAgreementGate, RolloutPolicy, Shadow
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.rollout.replay import replay

HELD = "PersonAsked"
SHADOW = Shadow(percent=20, max_requests_per_second=20, min_requests=100, max_duration=timedelta(minutes=2))
LONGER_S = 100
"""Longer than Shadow takes at twenty copies a second."""


def policy(on_breach: Literal["Hold", "Rollback", "Note"] = "Hold") -> RolloutPolicy:
    gates = (ErrorRateGate(), LatencyGate(), MaskAgreementGate(minimum=0.9, on_breach=on_breach))
    return POLICY.model_copy(update={"shadow": SHADOW, "gates": gates})


def is_held(state: RolloutState) -> bool:
    return state.phase is Phase.SHADOW and state.reason == HELD


def verdict_of(rollout: Rollout) -> Verdict:
    return next(verdict for verdict in rollout.record.verdicts if verdict.gate == "maskAgreement")


async def held(rollout: Rollout) -> RolloutState:
    await rollout.begin(policy())
    state = await rollout.until(is_held, 300)
    for _ in range(150):
        await rollout.second()
    assert rollout.state is not None
    assert is_held(rollout.state), "it goes on by itself"
    return state


async def test_masks_that_differ_hold_the_rollout_in_shadow_and_no_caller_has_an_answer_of_it() -> None:
    rollout = Rollout(disagreement=0.3)
    state = await held(rollout)

    assert rollout.served == {FIRST.revision}
    assert "segserve rollout sheet" in state.message
    assert (verdict_of(rollout).outcome, verdict_of(rollout).reason) == (Outcome.UNDECIDED, "MasksDiffer")
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []


@pytest.mark.parametrize(
    ("verb", "value", "phase"),
    [
        ("resume", SECOND.revision, Phase.SUCCEEDED),
        ("skip-gate", f"maskAgreement@{SECOND.revision}", Phase.SUCCEEDED),
        ("abort", SECOND.revision, Phase.ROLLED_BACK),
    ],
)
async def test_a_person_decides_about_masks_that_differ_and_is_asked_once(verb: str, value: str, phase: Phase) -> None:
    rollout = Rollout(disagreement=0.3)
    await held(rollout)
    rollout.ask(verb, value)

    assert (await rollout.end()).phase is phase


async def test_shadow_waits_for_answers_that_are_compared_late() -> None:
    rollout = Rollout(disagreement=None)
    shadow = SHADOW.model_copy(update={"percent": 100, "max_duration": timedelta(minutes=30)})
    await rollout.begin(policy().model_copy(update={"shadow": shadow}))
    for _ in range(LONGER_S):
        await rollout.second()
    assert verdict_of(rollout).reason == "NotComparable"
    rollout.disagreement = 0.3

    await rollout.until(is_held, 60)
    assert rollout.served == {FIRST.revision}


async def test_answers_that_are_never_compared_hold_a_rollout_no_longer_than_shadow_may_last() -> None:
    rollout = Rollout(disagreement=None)
    await rollout.begin(policy())

    assert (await rollout.end()).phase is Phase.SUCCEEDED
    assert verdict_of(rollout).reason == "NotComparable"
