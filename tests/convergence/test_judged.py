"""The strategy shadow in memory: a candidate gets a verdict by copies alone, and requests only if a person asks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout
from segserve_operator.api.rollout_policy import MaskAgreementGate, RolloutPolicy, Shadow, Slo
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.replay import replay

COPIES = Shadow(percent=100, max_requests_per_second=50, min_requests=100, max_duration=timedelta(minutes=1))
LONGER = COPIES.model_copy(update={"max_duration": timedelta(minutes=4)})
JUDGE = POLICY.model_copy(update={"strategy": "shadow", "shadow": COPIES})


async def judged(policy: RolloutPolicy = JUDGE, **world: object) -> Rollout:
    rollout = Rollout(**world)  # type: ignore[arg-type]
    await rollout.begin(policy)
    await rollout.end()
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []
    return rollout


async def later(rollout: Rollout, seconds: int = 60) -> None:
    for _ in range(seconds):
        await rollout.second()


async def test_a_candidate_no_worse_than_stable_is_judged_well_and_no_caller_has_its_answers() -> None:
    rollout = await judged()
    await later(rollout, 10)
    state, world = rollout.state, rollout.world

    assert (state.phase, state.weight, state.reason) == (Phase.JUDGED, 0, "JudgedWell")
    assert "judged well" in state.message
    assert rollout.served == {FIRST.revision}
    assert world.traffic.mirror("coins") is None
    assert SECOND.revision not in world.fleet.members
    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert world.condition("coins", "Stalled")[0] == "False"
    assert world.condition("coins", "Progressing") == ("False", "Judged")
    assert world.condition("coins", "Ready")[0] == "True"


async def test_one_that_fails_copies_is_rolled_back_as_under_any_strategy() -> None:
    rollout = await judged(JUDGE.model_copy(update={"shadow": LONGER}), errors={SECOND.revision: 0.3})

    assert rollout.state.phase is Phase.ROLLED_BACK
    assert rollout.served == {FIRST.revision}


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ({"requests_per_s": 2}, "neither harm nor its absence"),
        ({"requests_per_s": 0}, "no request was copied"),
        ({"compares": False}, "no request was copied"),
    ],
)
async def test_without_enough_copies_it_ends_undecided_once_its_time_is_over(
    world: dict[str, object], said: str
) -> None:
    rollout = await judged(**world)

    assert (rollout.state.phase, rollout.state.reason) == (Phase.JUDGED, "JudgedUndecided")
    assert said in rollout.state.message
    assert rollout.served <= {FIRST.revision}


async def test_masks_that_differ_leave_it_undecided_unless_a_person_accepts_them() -> None:
    masks = JUDGE.model_copy(update={"gates": (*JUDGE.gates, MaskAgreementGate())})
    rollout = await judged(masks, disagreement=0.5)

    assert (rollout.state.phase, rollout.state.reason) == (Phase.JUDGED, "JudgedUndecided")
    assert "masks differ" in rollout.state.message

    accepted = Rollout(disagreement=0.5)
    await accepted.begin(masks.model_copy(update={"shadow": LONGER}))
    await accepted.until(lambda state: state.reason == "PersonAsked")
    accepted.ask("resume", SECOND.revision)
    ended = await accepted.end(5)

    assert (ended.phase, ended.reason) == (Phase.JUDGED, "JudgedWell")


async def test_the_same_spec_is_not_judged_again_and_a_retry_is() -> None:
    rollout = await judged()
    first = rollout.state
    rollout.world.restart()
    await later(rollout, 30)

    assert rollout.state == first

    rollout.ask("retry", SECOND.revision)
    again = await rollout.until(lambda state: first is not None and state.rollout != first.rollout, 20)

    assert again.revision == SECOND.revision
    # An operator that started again knows nothing of stable within this minute of copies.
    assert (await rollout.end()).reason == "JudgedUndecided"


async def test_another_strategy_of_the_same_revision_rolls_it_out() -> None:
    rollout = await judged()
    rollout.world.store.apply(SECOND, policy=POLICY, slo=Slo())
    await rollout.until(lambda state: state.phase not in ENDED, 20)

    assert (await rollout.end()).phase is Phase.SUCCEEDED
    assert rollout.served == {FIRST.revision, SECOND.revision}


async def test_a_person_rolls_out_what_was_judged_by_its_steps_and_with_its_gates() -> None:
    rollout = await judged()
    rollout.ask("promote", f"{SECOND.revision}@ada/1")
    weights = set()
    await rollout.until(lambda state: state.phase not in ENDED, 20)
    rollout.world.restart()
    while rollout.state is not None and rollout.state.phase not in ENDED:
        await rollout.second()
        weights.add(rollout.state.weight)

    assert rollout.state.phase is Phase.SUCCEEDED
    assert weights >= {5, 25, 50}
    assert rollout.record.policy.strategy == "canary"
    assert ("coins", "RequestTaken") in rollout.world.store.told


async def test_neither_a_pause_nor_the_deadline_lets_it_serve() -> None:
    late = JUDGE.model_copy(update={"deadline": timedelta(seconds=30)})
    rollout = Rollout(requests_per_s=2)
    await rollout.begin(late)
    await rollout.until(lambda state: state.phase is Phase.SHADOW)
    rollout.ask("pause", SECOND.revision)
    await later(rollout, 90)

    assert rollout.state.phase is Phase.SHADOW

    rollout.ask("resume", SECOND.revision)
    ended = await rollout.end(40)

    assert (ended.phase, ended.reason) == (Phase.JUDGED, "JudgedUndecided")
    assert rollout.served == {FIRST.revision}
