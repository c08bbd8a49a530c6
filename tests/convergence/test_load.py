"""The load test of Shadow in memory: a candidate is asked at the rate of its first step before any caller asks it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout
from segserve_operator.api.rollout_policy import LoadTestGate, RolloutPolicy
from segserve_operator.api.shadow import Shadow
from segserve_operator.core.rollout.counters import LoadCounts
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.rollout.replay import replay

SHADOW = Shadow(
    percent=20, max_requests_per_second=20, min_requests=100, max_duration=timedelta(minutes=5), load_test=True
)
TESTED = RolloutPolicy.model_validate({**POLICY.model_dump(by_alias=True), "shadow": SHADOW.model_dump(by_alias=True)})
FAST = LoadCounts(True, True, False, 15.0, 15.0, 15.0, 450, 0, ((20.0, 450),))
SLOW = LoadCounts(True, True, False, 15.0, 15.0, 5.0, 450, 0, ((20.0, 100), (2100.0, 350)))


def is_held(state: RolloutState) -> bool:
    return state.phase is Phase.SHADOW and state.reason == "PersonAsked"


def has_left_shadow(state: RolloutState) -> bool:
    return state.phase not in (Phase.PENDING, Phase.GOLDEN, Phase.SHADOW)


def test_the_policy_of_a_load_test_has_its_gate() -> None:
    assert TESTED.gates[-1] == LoadTestGate()
    assert RolloutPolicy.model_validate(TESTED.model_dump(by_alias=True)) == TESTED
    assert not any(isinstance(gate, LoadTestGate) for gate in POLICY.gates)


async def test_gateways_are_told_the_rate_of_the_first_step_once_there_are_enough_pairs() -> None:
    rollout, rates = Rollout(load=LoadCounts(can=True)), set()
    await rollout.begin(TESTED)
    await rollout.until(lambda state: state.phase is Phase.SHADOW)
    while float(rollout.record.progress.seen) < 140:
        await rollout.second()
        mirror = rollout.world.traffic.mirror("coins")
        assert mirror is not None
        assert mirror.load_per_s == 0 or float(rollout.record.progress.seen) >= SHADOW.min_requests
        rates.add(mirror.load_per_s)

    # A quarter of 50 a second, rounded up: the step after the one that ten copies a second cover.
    assert 0.0 in rates
    assert 10.0 <= max(rates) <= 15.0
    assert rollout.state is not None
    assert rollout.state.phase is Phase.SHADOW


async def test_a_candidate_that_bears_the_rate_goes_on_and_is_asked_once() -> None:
    rollout = Rollout(load=FAST)
    await rollout.begin(TESTED)
    state = await rollout.until(has_left_shadow, 300)
    ended = await rollout.end()

    assert (state.phase, state.weight) == (Phase.PROGRESSING, 25)
    assert ended.phase is Phase.SUCCEEDED
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []


@pytest.mark.parametrize(("verb", "phase"), [("resume", Phase.SUCCEEDED), ("abort", Phase.ROLLED_BACK)])
async def test_a_candidate_that_is_slow_at_the_rate_waits_for_a_person_and_no_caller_has_its_answer(
    verb: str, phase: Phase
) -> None:
    rollout = Rollout(load=SLOW)
    await rollout.begin(TESTED)
    state = await rollout.until(is_held, 300)
    assert rollout.served == {FIRST.revision}
    assert "at 15 requests/s its p95 is 2.2 s" in state.message
    mirror = rollout.world.traffic.mirror("coins")
    assert mirror is not None
    assert mirror.load_per_s == 0

    rollout.ask(verb, SECOND.revision)

    assert (await rollout.end()).phase is phase


async def test_a_skipped_gate_asks_for_no_load() -> None:
    rollout = Rollout(load=LoadCounts(can=True))
    await rollout.begin(TESTED)
    await rollout.until(lambda state: state.phase is Phase.SHADOW)
    rollout.ask("skip-gate", f"loadTest@{SECOND.revision}")
    state = await rollout.until(has_left_shadow, 300)

    assert state.phase is Phase.PROGRESSING


async def test_a_test_that_never_ends_lasts_as_long_as_shadow_may() -> None:
    rollout = Rollout(load=LoadCounts(can=True))
    await rollout.begin(TESTED)
    state = await rollout.until(has_left_shadow, 400)

    assert (state.phase, state.reason) == (Phase.PROGRESSING, "ShadowOver")
    assert (await rollout.end()).phase is Phase.SUCCEEDED
