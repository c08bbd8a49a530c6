"""Rollouts from edit to end in memory: who gets requests, who is rolled back, and what people's words do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from fakes.deaths import SWEEP, deaths
from fakes.platform import CountedWrites, Crash, InMemoryFleet, World
from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout, answers, fails
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.replay import replay


async def test_a_healthy_revision_goes_up_by_steps_and_is_promoted_and_the_old_one_is_kept() -> None:
    rollout, weights = Rollout(), []
    await rollout.begin()
    while rollout.state is None or not rollout.state.ended:
        await rollout.second()
        weights.append(rollout.world.traffic.groups_of("coins").get(SECOND.revision, 0))

    assert sorted(set(weights)) == [0, 5, 25, 50, 95, 100]
    assert weights == sorted(weights)
    assert rollout.state.phase is Phase.SUCCEEDED
    assert rollout.world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    assert rollout.world.role("coins", "previous") == (FIRST.revision, "main")


async def test_a_revision_that_fails_one_request_in_ten_is_rolled_back_and_not_tried_again() -> None:
    rollout = Rollout(errors={SECOND.revision: 0.1})
    rollout.world.found.answers["probe"] = answers
    await rollout.begin()
    ended = await rollout.end()
    for _ in range(30):
        await rollout.second()

    assert ended.phase is Phase.ROLLED_BACK
    assert rollout.failed[SECOND.revision] < 100
    assert rollout.world.traffic.groups_of("coins") == {"main": 100}
    assert rollout.world.role("coins", "candidate") == (SECOND.revision, None)
    assert set(rollout.world.fleet.members) == {"main"}
    assert rollout.world.condition("coins", "Degraded")[0] == "True"


async def test_a_process_that_is_ended_over_and_over_decides_as_one_that_runs_through() -> None:
    ends = []
    for restarts in (False, True):
        rollout = Rollout(errors={SECOND.revision: 0.08})
        rollout.world.found.answers["probe"] = answers
        await rollout.begin()
        while rollout.state is None or not rollout.state.ended:
            await rollout.second()
            if restarts:
                rollout.world.restart()
        ends.append(rollout.state.phase)

    assert ends == [Phase.ROLLED_BACK, Phase.ROLLED_BACK]


async def test_every_decision_is_made_again_from_the_record_byte_for_byte() -> None:
    rollout = Rollout(errors={SECOND.revision: 0.1})
    rollout.world.found.answers["probe"] = answers
    await rollout.begin()
    await rollout.end()
    again = replay(rollout.record)

    assert len(again) >= 3
    assert all(decision.reason and decision.message for decision in rollout.record.decisions)
    assert all(each.same for each in again)


async def test_blue_green_takes_all_requests_at_once_and_gives_them_back_when_it_fails() -> None:
    rollout = Rollout()
    await rollout.begin(POLICY.model_copy(update={"strategy": "blueGreen"}))
    await rollout.until(lambda state: state.phase is Phase.BAKING)
    assert rollout.world.traffic.groups_of("coins") == {SECOND.revision: 100}

    rollout.errors = {SECOND.revision: 1.0}
    rollout.world.found.answers["probe"] = fails
    ended = await rollout.end(20)

    assert ended.phase is Phase.ROLLED_BACK
    assert rollout.world.traffic.groups_of("coins") == {"main": 100}
    assert rollout.world.role("coins", "stable") == (FIRST.revision, "main")


async def test_a_fault_that_begins_after_the_promotion_is_seen_against_what_the_former_revision_keeps() -> None:
    rollout = Rollout()
    await rollout.begin(POLICY.model_copy(update={"bake_time": timedelta(minutes=20)}))
    await rollout.until(lambda state: state.phase is Phase.BAKING)
    rollout.errors = {SECOND.revision: 0.08}
    rollout.world.found.answers["probe"] = answers
    ended = await rollout.end()

    assert ended.phase is Phase.ROLLED_BACK
    assert rollout.world.traffic.groups_of("coins") == {"main": 100}
    assert rollout.world.role("coins", "stable") == (FIRST.revision, "main")


@pytest.mark.parametrize(
    ("verb", "weight", "phase"),
    [("abort", 5, Phase.ROLLED_BACK), ("promote", 5, Phase.BAKING), ("abort", 25, Phase.ROLLED_BACK)],
)
async def test_a_persons_word_is_done_once(verb: str, weight: int, phase: Phase) -> None:
    rollout = Rollout()
    await rollout.begin()
    await rollout.until(lambda state: state.weight == weight)
    rollout.ask(verb, SECOND.revision)
    await rollout.second()

    assert rollout.state.phase is phase
    assert f"{verb}={SECOND.revision}" in rollout.world.store.objects["coins"].status.handled
    assert rollout.record.decisions[-1].actor == f"{verb}={SECOND.revision}"


async def test_pause_holds_and_resume_lets_go_on_and_the_same_text_again_does_nothing() -> None:
    rollout = Rollout()
    await rollout.begin()
    await rollout.until(lambda state: state.weight == 5)
    rollout.ask("pause", f"{SECOND.revision}@1")
    for _ in range(120):
        await rollout.second()
    held = rollout.state
    rollout.ask("resume", f"{SECOND.revision}@1")
    await rollout.until(lambda state: state.weight == 25)

    assert (held.weight, held.paused, held.reason) == (5, True, "Paused")
    assert (await rollout.end()).phase is Phase.SUCCEEDED


@pytest.mark.parametrize("step_s", [-7200, 86400])
async def test_a_step_of_the_clock_promotes_nothing_bad_and_blocks_nothing_good(step_s: int) -> None:
    ends = []
    for errors in ({}, {SECOND.revision: 0.1}):
        rollout = Rollout(errors=errors)
        rollout.world.found.answers["probe"] = answers
        await rollout.begin(POLICY.model_copy(update={"deadline": timedelta(days=3)}))
        await rollout.until(lambda state: state.weight == 5)
        rollout.world.now_s += step_s
        ends.append((await rollout.end(3600)).phase)

    assert ends == [Phase.SUCCEEDED, Phase.ROLLED_BACK]


async def story(rollout: Rollout, die_at: int = -1, *, after: bool = False) -> list[str]:
    writes = CountedWrites(die_at, after)
    world = rollout.world
    ports = [writes.around(port) for port in (world.store, world.fleet, world.traffic)]
    world.store.apply(FIRST, policy=POLICY, slo=Slo())
    await world.passes()
    world.store.apply(SECOND, policy=POLICY, slo=Slo())
    for _ in range(240):  # undisturbed, the last write is made by the 140th pass
        for group, weight in world.traffic.groups_of("coins").items():
            world.traffic.count("coins", group, weight, 0)
        try:
            await world.service_over(*ports).run_once()
        except Crash:
            world.restart()
        world.check()
        world.fleet.work()
        world.now_s += 1
    return writes.names


@SWEEP
async def test_a_crash_before_or_after_any_write_of_a_rollout_ends_as_without_it(every: bool) -> None:
    for die_at, after in deaths(await story(Rollout()), every=every):
        rollout = Rollout()
        await story(rollout, die_at, after=after)
        assert rollout.state.phase is Phase.SUCCEEDED, (die_at, after)
        assert rollout.world.role("coins", "stable") == (SECOND.revision, SECOND.revision)


@dataclass
class SizedFleet(InMemoryFleet):
    """Groups with as many servers as they are told to have, while there is room for so many beside main."""

    room: int = 100

    async def start(self, group: str, replicas: int = 1) -> None:
        present = self.members.get(group)
        await super().start(group, replicas)
        servers = self.members[group].servers[: replicas if group == "main" else min(replicas, self.room)]
        kept = present.servers[:replicas] if present is not None else ()
        self.members[group] = replace(self.members[group], servers=(*kept, *servers[len(kept) :]))

    def count(self, group: str) -> int:
        return len(self.members[group].servers) if group in self.members else 0


def sized_rollout(servers: int) -> tuple[Rollout, SizedFleet]:
    fleet = SizedFleet(replicas=servers)
    rollout = Rollout(World(fleet=fleet))
    assert rollout.world.store.pool is not None
    rollout.world.store.pool = replace(rollout.world.store.pool, replicas=servers)
    return rollout, fleet


async def test_a_candidate_has_servers_for_its_weight_before_it_gets_that_weight() -> None:
    rollout, fleet = sized_rollout(20)
    counts = []
    await rollout.begin()
    while rollout.state is None or not rollout.state.ended:
        await rollout.second()
        weight = rollout.world.traffic.groups_of("coins").get(SECOND.revision, 0)
        counts.append(fleet.count(SECOND.revision))
        assert counts[-1] * 100 >= weight * 20 or rollout.state is None

    assert sorted(set(counts)) == [1, 5, 10, 20]
    assert counts == sorted(counts)
    assert rollout.state.phase is Phase.SUCCEEDED
    assert fleet.count("main") == 20


async def test_a_weight_is_not_raised_while_there_is_no_room_for_the_servers_that_it_needs() -> None:
    rollout, fleet = sized_rollout(20)
    fleet.room = 5
    await rollout.begin()
    await rollout.until(lambda state: state.weight == 25)
    for _ in range(240):
        await rollout.second()

    assert (rollout.state.weight, rollout.state.phase) == (25, Phase.PROGRESSING)

    fleet.room = 100
    fleet.members[SECOND.revision] = replace(fleet.members[SECOND.revision], intact=False)
    ended = await rollout.end()

    assert ended.phase is Phase.SUCCEEDED


async def test_what_a_person_promotes_gets_its_servers_first() -> None:
    rollout, fleet = sized_rollout(20)
    await rollout.begin()
    await rollout.until(lambda state: state.weight == 5)
    rollout.ask("promote", SECOND.revision)
    while rollout.world.traffic.groups_of("coins").get(SECOND.revision, 0) < 95:
        before = fleet.count(SECOND.revision)
        await rollout.second()

    assert before == 20
    assert "RequestTaken" in {reason for _, reason in rollout.world.store.told}


@pytest.mark.parametrize("policy", [None, POLICY.model_copy(update={"on_undecided": "Promote"})], ids=["none", "late"])
async def test_a_candidate_that_may_get_all_requests_at_any_time_has_all_servers_from_the_start(
    policy: RolloutPolicy | None,
) -> None:
    rollout, fleet = sized_rollout(4)
    rollout.world.store.apply(FIRST, policy=policy, slo=Slo())
    await rollout.world.passes()
    rollout.world.store.apply(SECOND, policy=policy, slo=Slo())
    await rollout.second()

    assert fleet.count(SECOND.revision) == 4
