"""Shadow in memory: a candidate is asked copies of callers' requests before any caller gets its answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from fakes.platform import InMemoryStore, World
from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout
from segserve_operator.api.rollout_policy import Shadow
from segserve_operator.core.advance.explanations import SIGNALS
from segserve_operator.core.rollout.phases import ENDED, Phase, Signal
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.rollout.replay import replay
from segserve_operator.core.world.observed import PoolGateway, PoolObserved

SHADOW = POLICY.model_copy(update={"shadow": Shadow(percent=20, max_requests_per_second=20, min_requests=100)})
SHORT = Shadow(percent=20, max_requests_per_second=20, max_duration=timedelta(seconds=30))


def is_in_shadow(state: RolloutState) -> bool:
    return state.phase is Phase.SHADOW


def has_left_shadow(state: RolloutState) -> bool:
    return state.phase not in (Phase.PENDING, Phase.GOLDEN, Phase.SHADOW)


async def test_a_candidate_that_fails_copies_is_rolled_back_and_no_caller_ever_had_its_answer() -> None:
    rollout = Rollout(errors={SECOND.revision: 0.3})
    await rollout.begin(SHADOW)
    ended = await rollout.end()

    assert (ended.phase, ended.weight) == (Phase.ROLLED_BACK, 0)
    assert rollout.served == {FIRST.revision}
    assert ended.quarantines == 0
    assert "requests" in ended.message
    assert ended.message == rollout.record.verdicts[0].message
    assert "no requests yet" not in ended.message
    assert rollout.world.traffic.mirror("coins") is None
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []


async def test_a_healthy_candidate_leaves_out_the_steps_whose_rate_of_requests_it_has_had_in_shadow() -> None:
    rollout = Rollout(requests_per_s=50)
    await rollout.begin(SHADOW)
    began = await rollout.until(has_left_shadow, 600)
    weights = {began.weight}
    while rollout.state is not None and rollout.state.phase not in ENDED:
        await rollout.second()
        weights.add(rollout.world.traffic.groups_of("coins").get(SECOND.revision, 0))

    assert rollout.state.phase is Phase.SUCCEEDED
    assert SIGNALS[Signal.SHADOW_PASSED][0] in {decision.reason for decision in rollout.record.decisions}
    assert weights & {5, 25, 50} == {25, 50}  # 10 copies a second are more than 5 %, but less than 25 %, of 50


async def test_a_pool_whose_gateways_have_no_comparator_is_told_so_as_long_as_that_matters() -> None:
    rollout = Rollout(world=World(store=InMemoryStore(pool=PoolObserved("default", gateway=PoolGateway(shadow=False)))))
    await rollout.begin(SHADOW.model_copy(update={"shadow": SHORT}))
    await rollout.until(is_in_shadow)

    assert rollout.world.traffic.mirror("coins") is None
    assert rollout.world.condition("coins", "Degraded") == ("True", "NoComparator")
    assert rollout.world.condition("coins", "Ready")[0] == "True"

    await rollout.until(has_left_shadow, 60)

    assert rollout.world.condition("coins", "Degraded") == ("False", "AsWanted")


BY_DEFAULT = POLICY.model_copy(update={"shadow": None})


async def test_a_model_with_an_slo_has_shadow_unless_it_says_no() -> None:
    for policy, has_shadow in (
        (BY_DEFAULT, True),
        (BY_DEFAULT.model_copy(update={"strategy": "blueGreen", "steps": ()}), True),
        (BY_DEFAULT.model_copy(update={"strategy": "immediate", "steps": ()}), False),
        (BY_DEFAULT.model_copy(update={"shadow": Shadow(enabled=False)}), False),
    ):
        rollout = Rollout()
        await rollout.begin(policy, watched=True)
        await rollout.end(3000)
        phases = {decision.phase for decision in rollout.record.decisions}

        assert (Phase.SHADOW in phases) is has_shadow, policy


async def test_who_has_not_been_watched_yet_has_shadow_only_if_it_asks_for_it() -> None:
    rollout = Rollout()
    await rollout.begin(BY_DEFAULT)
    await rollout.until(lambda state: state.phase is Phase.PROGRESSING, 30)

    assert rollout.record.policy.shadow is None


async def test_shadow_goes_on_until_it_is_known_how_stables_requests_cluster() -> None:
    rollout = Rollout()
    await rollout.begin(SHADOW, watched=False)
    state, seconds = await shadow_s(rollout)
    ended = await rollout.end()

    assert (state.phase, state.reason) == (Phase.PROGRESSING, SIGNALS[Signal.SHADOW_PASSED][0])
    assert seconds > 400
    assert ended.phase is Phase.SUCCEEDED
    assert all(each.same for each in replay(rollout.record))


async def test_one_that_fails_copies_is_stopped_before_stable_is_known() -> None:
    rollout = Rollout(errors={SECOND.revision: 0.9})
    await rollout.begin(SHADOW, watched=False)
    ended = await rollout.end(300)

    assert ended.phase is Phase.ROLLED_BACK
    assert rollout.served == {FIRST.revision}


async def test_a_shadow_that_is_over_before_stable_is_known_leads_to_the_first_step() -> None:
    rollout = Rollout(requests_per_s=50)
    await rollout.begin(SHADOW.model_copy(update={"shadow": SHORT}), watched=False)
    state = await rollout.until(has_left_shadow, 120)

    assert (state.phase, state.weight, state.reason) == (Phase.PROGRESSING, 5, "ShadowOver")
    assert (await rollout.end(3000)).phase is Phase.SUCCEEDED
    assert all(each.same for each in replay(rollout.record))


async def test_a_model_without_an_slo_has_shadow_only_if_it_asks_for_it() -> None:
    rollout = Rollout()
    rollout.world.store.apply(FIRST, policy=BY_DEFAULT)
    await rollout.world.passes()
    rollout.world.store.apply(SECOND, policy=BY_DEFAULT)
    await rollout.until(lambda state: state.phase is Phase.PROGRESSING, 30)

    assert rollout.record.policy.shadow is None


async def test_where_nothing_is_compared_nobody_waits_for_what_he_did_not_ask_for() -> None:
    rollout = Rollout(world=World(store=InMemoryStore(pool=PoolObserved("default", gateway=PoolGateway(shadow=False)))))
    await rollout.begin(BY_DEFAULT, watched=True)
    state = await rollout.until(has_left_shadow, 30)

    assert (state.phase, state.weight) == (Phase.PROGRESSING, 5)
    assert Phase.SHADOW not in {decision.phase for decision in rollout.record.decisions}
    assert rollout.world.condition("coins", "Degraded")[0] == "False"


async def test_a_rollout_that_began_under_a_release_without_that_default_goes_on_as_it_began() -> None:
    for phase in (Phase.PENDING, Phase.GOLDEN, Phase.PROGRESSING):
        rollout = Rollout()
        await rollout.begin(watched=True)
        await rollout.until(lambda state, phase=phase: state.phase is phase, 60)
        store = rollout.world.store
        # Spec and record as that release left them: neither says anything of Shadow.
        wanted = store.objects["coins"].wanted
        assert wanted is not None
        store.objects["coins"] = replace(store.objects["coins"], wanted=replace(wanted, policy=BY_DEFAULT))
        name = rollout.record.name
        if name in store.rollout_records:
            store.rollout_records[name] = replace(store.rollout_records[name], policy=BY_DEFAULT)
        rollout.world.restart()
        ended = await rollout.end()

        assert (ended.phase, rollout.record.name) == (Phase.SUCCEEDED, name)
        assert Phase.SHADOW not in {decision.phase for decision in rollout.record.decisions}, phase


async def shadow_s(rollout: Rollout) -> tuple[RolloutState, float]:
    """Return the state after Shadow, and how many seconds it took."""
    began = await rollout.until(is_in_shadow)
    state = await rollout.until(has_left_shadow, 700)
    return state, state.since_s - began.since_s


async def test_where_nobody_calls_the_steps_begin_after_a_minute() -> None:
    rollout = Rollout(requests_per_s=0)
    await rollout.begin(SHADOW)
    state, seconds = await shadow_s(rollout)

    assert (state.phase, state.weight, state.reason) == (Phase.PROGRESSING, 5, "ShadowUnused")
    assert 60 <= seconds <= 65
    assert float(rollout.record.progress.seen) == 0
    assert all(each.same for each in replay(rollout.record))


async def test_an_operator_that_starts_again_in_shadow_goes_on_with_the_pairs_that_it_knew() -> None:
    rollout = Rollout(requests_per_s=20)
    await rollout.begin(SHADOW)
    await rollout.until(is_in_shadow)
    for _ in range(20):
        await rollout.second()
    known = float(rollout.record.progress.seen)
    rollout.world.restart()
    await rollout.second()

    assert float(rollout.record.progress.seen) >= known > 0
    assert (await rollout.end()).phase is Phase.SUCCEEDED
