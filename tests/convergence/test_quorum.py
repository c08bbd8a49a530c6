"""A fleet that is never whole: what serves, what is blamed and what is said while a server is missing or bad."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.cases import cases
from fakes.cluster_world import ClusterWorld, model_manifest
from fakes.platform import Verdict, World, assigned
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.spec.model_spec import Golden
from segserve_common.kube.names import object_name
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.world.observed import MinReady

FIRST, SECOND, THIRD = (assigned("coins", network) for network in "123")
OUT_OF_MEMORY = Verdict("LoadFailed", retryable=True)


def fleet_of(replicas: int, *, down: frozenset[str] = frozenset()) -> World:
    """Return a world whose groups have so many servers; those that are `down` never answer."""
    world = World()
    world.fleet.replicas = replicas
    assert world.store.pool is not None
    world.store.pool = replace(world.store.pool, replicas=replicas)
    world.fleet.down |= down
    return world


async def served(replicas: int = 3, told: AssignedModel = FIRST, **options) -> World:
    world = fleet_of(replicas)
    world.store.apply(told, **options)
    await world.passes()
    assert world.condition("coins", "Ready") == ("True", "Serving")
    return world


async def changed(replicas: int = 3, **options) -> World:
    """Return a world in which the second revision has just replaced the first."""
    world = await served(replicas, **options)
    world.store.apply(SECOND, **options)
    await world.passes(5)
    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    return world


def answering(world: World, group: str) -> int:
    shares = [share for route in world.traffic.plan.routes for share in route.shares if share.group == group]
    return sum(len(share.endpoints) for share in shares)


def message(world: World, kind: str) -> str:
    return next(each.message for each in world.store.objects["coins"].status.conditions if each.type == kind)


def pool_condition(world: World, kind: str) -> tuple[str, str, str]:
    found = next(each for each in world.store.pool.status.conditions if each.type == kind)
    return found.status, found.reason, found.message


# A return


@pytest.mark.parametrize("missing", [1, 2])
async def test_a_revert_by_spec_takes_effect_in_the_next_pass_with_whatever_servers_answer(missing: int) -> None:
    world = await changed()
    world.fleet.down |= {f"main-{number}" for number in range(missing)}
    await world.service.run_once()
    world.store.apply(FIRST)
    await world.service.run_once()

    assert world.traffic.groups_of("coins") == {"main": 100}
    assert answering(world, "main") == 3 - missing
    assert world.role("coins", "stable") == (FIRST.revision, "main")


async def test_a_rollback_by_annotation_takes_effect_in_the_next_pass_with_whatever_servers_answer() -> None:
    world = await changed()
    world.fleet.down |= {"main-0", "main-1"}
    world.store.annotate("coins", rollback=SECOND.revision)
    await world.service.run_once()

    assert world.traffic.groups_of("coins") == {"main": 100}
    assert answering(world, "main") == 1


async def test_a_rollback_to_servers_of_which_none_answers_is_refused_in_words() -> None:
    world = await changed()
    world.fleet.down |= {"main-0", "main-1", "main-2"}
    world.store.annotate("coins", rollback=SECOND.revision)
    await world.service.run_once()

    assert world.traffic.groups_of("coins") == {SECOND.revision: 100}
    assert ("coins", "RequestRefused") in world.store.told


async def test_a_revert_that_no_server_can_make_is_neither_silent_nor_done() -> None:
    world = await changed()
    world.fleet.down |= {"main-0", "main-1", "main-2"}
    world.store.apply(FIRST)
    await world.passes(30)

    assert world.traffic.groups_of("coins") == {SECOND.revision: 100}
    assert world.condition("coins", "Progressing") == ("True", "Returning")
    assert world.condition("coins", "Reconciling") == ("True", "Returning")
    assert world.condition("coins", "Degraded") == ("True", "NoServer")
    assert world.store.objects["coins"].status.observed_generation == 2

    world.fleet.down.remove("main-1")
    await world.passes(1)

    assert world.traffic.groups_of("coins") == {"main": 100}
    assert world.store.objects["coins"].status.observed_generation == 3


async def test_a_strict_pool_holds_up_no_return() -> None:
    world = await changed()
    assert world.store.pool is not None
    world.store.pool = replace(world.store.pool, min_ready=MinReady(percent=100))
    world.fleet.down |= {"main-0"}
    world.store.apply(FIRST)
    await world.service.run_once()

    assert world.traffic.groups_of("coins") == {"main": 100}


# A promotion


@pytest.mark.parametrize(("replicas", "missing"), [(20, 4), (3, 1)])
async def test_a_first_model_of_which_enough_servers_are_proved_is_ready_and_has_a_route(
    replicas: int, missing: int
) -> None:
    world = fleet_of(replicas, down=frozenset(f"main-{number}" for number in range(missing)))
    world.store.apply(FIRST)
    await world.passes()

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.traffic.groups_of("coins") == {"main": 100}
    assert answering(world, "main") == replicas - missing
    assert pool_condition(world, "Ready")[:2] == ("True", "Serving")
    assert pool_condition(world, "Reconciling")[:2] == ("True", "WaitingForServers")


@pytest.mark.parametrize(("replicas", "missing"), [(20, 5), (2, 1)])
async def test_a_first_model_waits_while_too_few_servers_are_proved(replicas: int, missing: int) -> None:
    world = fleet_of(replicas, down=frozenset(f"main-{number}" for number in range(missing)))
    world.store.apply(FIRST)
    await world.passes()

    assert world.condition("coins", "Ready") == ("False", "NoStable")
    assert world.condition("coins", "Progressing")[0] == "True"


@pytest.mark.parametrize(
    ("least", "missing", "ready"),
    [
        (MinReady(servers=1), 2, "True"),
        (MinReady(servers=2), 2, "False"),
        (MinReady(servers=9), 0, "True"),
        (MinReady(percent=100), 1, "False"),
        (MinReady(percent=1), 2, "True"),
    ],
)
async def test_a_pool_says_how_many_servers_are_enough(least: MinReady, missing: int, ready: str) -> None:
    world = fleet_of(3, down=frozenset(f"main-{number}" for number in range(missing)))
    assert world.store.pool is not None
    world.store.pool = replace(world.store.pool, min_ready=least)
    world.store.apply(FIRST)
    await world.passes()

    assert world.condition("coins", "Ready")[0] == ready


async def test_callers_lose_no_server_to_a_promotion_while_the_missing_one_may_still_come() -> None:
    world = await served()
    world.fleet.down.add(f"{SECOND.revision}-0")
    world.store.apply(SECOND)
    await world.passes(20)

    assert world.traffic.groups_of("coins") == {"main": 100}
    assert world.condition("coins", "Progressing") == ("True", "Ready")
    assert "2 of 3 servers answer" in message(world, "Progressing")

    world.fleet.down.clear()
    await world.passes(4)

    assert world.traffic.groups_of("coins") == {SECOND.revision: 100}


async def test_a_promotion_with_enough_servers_waits_no_longer_than_the_deadline() -> None:
    world = await served(progress_deadline_s=60)
    world.fleet.down.add(f"{SECOND.revision}-0")
    world.store.apply(SECOND, progress_deadline_s=60)
    await world.passes(10, seconds_each=10)

    assert world.traffic.groups_of("coins") == {SECOND.revision: 100}
    assert world.condition("coins", "Stalled") == ("False", "AsWanted")


async def test_a_promotion_needs_no_more_servers_than_answer_now() -> None:
    world = await served()
    world.fleet.down |= {"main-2", f"{SECOND.revision}-0"}
    world.store.apply(SECOND)
    await world.passes(5)

    assert world.traffic.groups_of("coins") == {SECOND.revision: 100}
    assert answering(world, SECOND.revision) == 2


async def test_a_rollout_starts_with_enough_servers() -> None:
    policy = RolloutPolicy(gates=())
    world = await served(policy=policy)
    world.fleet.verdicts[f"{SECOND.revision}-1"] = OUT_OF_MEMORY
    world.store.apply(SECOND, policy=policy)
    await world.passes(6)

    state = world.store.objects["coins"].status.rollout
    assert state.phase is not Phase.PENDING
    assert world.condition("coins", "Degraded") == ("True", "ServerFailed")


# A bad node


@pytest.mark.parametrize("verdict", [OUT_OF_MEMORY, Verdict("LoadFailed", attempts=3), Verdict("GoldenFailed")])
async def test_one_bad_server_is_named_and_the_revision_is_promoted_without_it(verdict: Verdict) -> None:
    world = await served()
    bad = f"{SECOND.revision}-1"
    world.fleet.verdicts[bad] = verdict
    world.store.apply(SECOND)
    await world.passes(6)

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    assert answering(world, SECOND.revision) == 2
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.condition("coins", "Degraded") == ("True", "ServerFailed")
    assert bad in message(world, "Degraded")
    assert verdict.reason in message(world, "Degraded")
    assert world.condition("coins", "Stalled") == ("False", "AsWanted")
    status, reason, text = pool_condition(world, "Degraded")
    assert (status, reason) == ("True", "ServerFailed")
    assert bad in text

    del world.fleet.verdicts[bad]
    await world.passes(2)

    assert answering(world, SECOND.revision) == 3
    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert pool_condition(world, "Degraded")[:2] == ("False", "AsWanted")


async def test_a_model_settles_into_main_without_its_bad_server_and_gives_its_group_back() -> None:
    world = await changed(keep_previous_s=10)
    world.fleet.verdicts["main-2"] = Verdict("LoadFailed", attempts=3)
    await world.passes(12, seconds_each=5)

    assert world.role("coins", "stable") == (SECOND.revision, "main")
    assert set(world.fleet.members) == {"main"}
    assert answering(world, "main") == 2
    assert world.condition("coins", "Degraded") == ("True", "ServerFailed")
    assert pool_condition(world, "Degraded")[:2] == ("True", "ServerFailed")


async def test_a_model_does_not_settle_while_too_few_servers_of_main_can_hold_it() -> None:
    world = await changed(keep_previous_s=10)
    world.fleet.verdicts |= {"main-1": OUT_OF_MEMORY, "main-2": OUT_OF_MEMORY}
    await world.passes(12, seconds_each=5)

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    assert answering(world, SECOND.revision) == 3
    assert world.condition("coins", "Degraded") == ("True", "ServerFailed")
    assert world.condition("coins", "Progressing") == ("True", "Settling")

    world.fleet.verdicts.clear()
    await world.passes(4)

    assert world.role("coins", "stable") == (SECOND.revision, "main")


async def test_a_revision_is_blamed_once_several_servers_say_so() -> None:
    world = await served()
    world.fleet.verdicts |= {f"{SECOND.revision}-{number}": Verdict("NonFinite", attempts=3) for number in (0, 2)}
    world.store.apply(SECOND)
    await world.passes(4)

    assert world.role("coins", "candidate") == (SECOND.revision, None)
    assert world.condition("coins", "Degraded") == ("True", "NonFinite")
    assert world.condition("coins", "Stalled") == ("True", "NonFinite")
    assert world.condition("coins", "Progressing") == ("False", "Stalled")
    assert world.store.objects["coins"].status.observed_generation == 2
    assert set(world.fleet.members) == {"main"}


async def test_a_revision_is_not_blamed_while_its_servers_try_again() -> None:
    world = await served()
    world.fleet.verdicts |= {f"{SECOND.revision}-{number}": OUT_OF_MEMORY for number in range(3)}
    world.store.apply(SECOND)
    await world.passes(20)

    assert world.role("coins", "candidate") == (SECOND.revision, SECOND.revision)
    assert world.condition("coins", "Degraded") == ("True", "LoadFailed")

    world.fleet.verdicts.clear()
    await world.passes(4)

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)


@cases(
    ("verdict", "blamed"),
    {
        "one says so, and another may be right": (Verdict("GoldenFailed"), False),
        "one says so again, and no other has proved it": (Verdict("LoadFailed", attempts=3), True),
    },
)
async def test_the_only_one_of_two_servers_that_came_is_heard_when_it_says_so_again(
    verdict: Verdict, blamed: bool
) -> None:
    world = await served(2)
    world.fleet.down.add(f"{SECOND.revision}-1")
    world.fleet.verdicts[f"{SECOND.revision}-0"] = verdict
    world.store.apply(SECOND)
    await world.passes(6)

    assert (world.role("coins", "candidate") == (SECOND.revision, None)) == blamed


async def test_what_is_wrong_with_an_artifact_is_the_same_on_every_server_and_needs_one_to_say_it() -> None:
    world = await served()
    world.fleet.verdicts[f"{SECOND.revision}-0"] = Verdict("SignatureMismatch")
    world.fleet.down |= {f"{SECOND.revision}-1", f"{SECOND.revision}-2"}
    world.store.apply(SECOND)
    await world.passes(4)

    assert world.role("coins", "candidate") == (SECOND.revision, None)
    assert world.condition("coins", "Stalled") == ("True", "SignatureMismatch")


# What is said meanwhile


async def test_progressing_is_never_idle_and_the_generation_lags_while_another_revision_is_wanted_than_serves() -> None:
    world = await served()
    said: set[tuple[str, str]] = set()
    world.fleet.down.add(f"{SECOND.revision}-0")
    world.store.apply(SECOND)
    for _ in range(12):
        await world.passes(1)
        found = world.store.objects["coins"].status
        if found.roles.stable.revision == SECOND.revision:
            break
        said.add(world.condition("coins", "Progressing"))
        assert world.condition("coins", "Reconciling")[0] == "True"
        assert found.observed_generation == 1
        assert found.read_generation == 2
        if len(said) > 1:
            world.fleet.down.clear()

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    assert world.store.objects["coins"].status.observed_generation == 2
    assert ("False", "Idle") not in said


async def test_an_edited_golden_set_is_adopted_though_a_server_is_missing() -> None:
    former = FIRST.model_copy(update={"golden": Golden(uri="file:///golden", sha256="1" * 64)})
    edited = FIRST.model_copy(update={"golden": Golden(uri="file:///golden", sha256="2" * 64)})
    world = await served(3, former)
    world.fleet.down.add("main-1")
    world.store.apply(edited)
    await world.passes(6)

    assert world.condition("coins", "GoldenPassed") == ("True", "AnswersMatch")
    assert world.store.records == {FIRST.revision: edited}


async def test_nothing_is_written_while_a_server_is_missing_or_bad() -> None:
    world = await served()
    world.fleet.down.add("main-0")
    world.fleet.verdicts["main-1"] = OUT_OF_MEMORY
    await world.passes(3)

    assert [await world.service.run_once() for _ in range(3)] == [(), (), ()]


# On a cluster: pods, nodes and statuses that the API server keeps


async def on_cluster(replicas: int = 3) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool(replicas=replicas)
    world.apply(model_manifest("coins"))
    await world.turns()
    assert world.condition("coins", "Ready") == ("True", "Serving")
    return world


def main_of(world: ClusterWorld) -> str:
    (main,) = (group for group in world.groups() if group.startswith("main"))
    return main


def said(world: ClusterWorld, kind: str) -> str:
    return next(each["message"] for each in world.status("coins")["conditions"] if each["type"] == kind)


async def test_a_bad_node_is_named_in_the_statuses_of_model_and_pool() -> None:
    world = await on_cluster()
    pod = f"{object_name('default', main_of(world))}-2"
    world.bad_pods[pod] = "LoadFailed"
    await world.turns(3)

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.condition("coins", "Degraded") == ("True", "ServerFailed")
    assert f"server {pod} on node node-of-{pod}: LoadFailed" in said(world, "Degraded")
    assert world.pool_condition("Degraded") == ("True", "ServerFailed")
    assert ("coins", "ServerFailed") in world.told()


async def test_a_generation_on_a_cluster_lags_until_it_serves_and_is_reached_by_what_is_refused() -> None:
    world = await on_cluster(1)
    world.apply(model_manifest("coins", "2"))
    await world.turns(2)
    status = world.status("coins")

    assert status["observedGeneration"] == 1
    assert {each["observedGeneration"] for each in status["conditions"]} == {2}
    assert world.condition("coins", "Reconciling")[0] == "True"

    await world.turns(4)

    assert world.status("coins")["observedGeneration"] == 2

    world.verdicts["3"] = "GoldenFailed"
    world.apply(model_manifest("coins", "3"))
    await world.turns(6)

    assert world.status("coins")["observedGeneration"] == 3
    assert world.condition("coins", "Stalled") == ("True", "GoldenFailed")
    assert world.condition("coins", "Ready") == ("True", "Serving")
