"""What takes too long holds nobody up: slots are held by what progresses, and what waits is said."""

from __future__ import annotations

from fakes.cluster_world import ClusterWorld, model_manifest
from fakes.platform import Verdict, World, assigned
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.models.pool import MAX_CANDIDATE_GROUPS

NINE = [f"model-{number}" for number in range(MAX_CANDIDATE_GROUPS + 1)]


async def world_of(names: list[str], **options) -> World:
    """Return a world that serves the first revision of models."""
    world = World()
    for name in names:
        world.store.apply(assigned(name, "1"), **options)
    await world.passes(40)
    assert {world.condition(name, "Ready") for name in names} == {("True", "Serving")}
    assert set(world.fleet.members) == {"main"}
    return world


def stable(world: World, name: str) -> str:
    role = world.role(name, "stable")
    return role[0]


def message(world: World, name: str, kind: str) -> str:
    return next(each.message for each in world.store.objects[name].status.conditions if each.type == kind)


def own_groups(world: World) -> int:
    return len(world.fleet.members.keys() - {"main"})


async def test_a_healthy_ninth_model_gets_its_turn_within_the_deadline() -> None:
    policy = RolloutPolicy(gates=())
    world = await world_of(NINE, policy=policy)
    *stuck, healthy = NINE
    for name in stuck:
        world.fleet.nodeless.add(assigned(name, "2").revision)
        world.store.apply(assigned(name, "2"), policy=policy)
    await world.passes(3)
    world.store.apply(assigned(healthy, "2"), policy=policy)
    await world.passes(5, seconds_each=60)

    assert world.condition(healthy, "Progressing") == ("True", "Queued")

    await world.passes(6, seconds_each=60)

    candidate = world.store.objects[healthy].roles.candidate
    assert candidate is None or candidate.group is not None
    assert own_groups(world) <= MAX_CANDIDATE_GROUPS


async def test_servers_of_a_stalled_candidate_stay_while_nobody_needs_them_and_a_node_that_comes_heals() -> None:
    world = await world_of(["coins"])
    revision = assigned("coins", "2").revision
    world.fleet.nodeless.add(revision)
    world.store.apply(assigned("coins", "2"))
    await world.passes(60, seconds_each=60)

    assert revision in world.fleet.members

    world.fleet.nodeless.clear()
    await world.passes(4)

    assert stable(world, "coins") == revision
    assert world.condition("coins", "Stalled") == ("False", "AsWanted")


async def test_stuck_candidates_take_turns_and_everyone_gets_servers_again() -> None:
    names = [f"model-{number}" for number in range(MAX_CANDIDATE_GROUPS + 3)]
    world = await world_of(names)
    for name in names:
        world.fleet.nodeless.add(assigned(name, "2").revision)
        world.store.apply(assigned(name, "2"))
    starts: dict[str, int] = {}
    for _ in range(120):
        await world.passes(1, seconds_each=60)
        assert own_groups(world) <= MAX_CANDIDATE_GROUPS
    for name in names:
        starts[name] = world.fleet.starts.count(assigned(name, "2").revision)

    assert all(count >= 2 for name, count in starts.items() if name in names[:3])
    assert all(starts.values())
    assert sum(starts.values()) < 60  # of at most 8 x 12 that a rotation at each deadline would start

    world.fleet.nodeless.clear()
    await world.passes(10)

    assert {stable(world, name) for name in names} == {assigned(name, "2").revision for name in names}


async def test_a_candidate_that_gave_its_servers_up_comes_after_those_that_never_had_any() -> None:
    names = [f"model-{number}" for number in range(MAX_CANDIDATE_GROUPS + 4)]
    world = await world_of(names)
    stuck, healthy = names[:MAX_CANDIDATE_GROUPS], names[MAX_CANDIDATE_GROUPS:]
    for name in stuck:
        world.fleet.nodeless.add(assigned(name, "2").revision)
        world.store.apply(assigned(name, "2"))
    await world.passes(3)
    for name in healthy:
        world.store.apply(assigned(name, "2"))
    await world.passes(10, seconds_each=60)
    await world.passes(6)

    assert {stable(world, name) for name in healthy} == {assigned(name, "2").revision for name in healthy}
    assert {world.condition(name, "Stalled") for name in stuck} <= {
        ("True", "ProgressDeadlineExceeded"),
        ("False", "AsWanted"),
    }


async def test_rollouts_that_wait_for_a_person_hold_no_slot() -> None:
    policy = RolloutPolicy(gates=())
    world = await world_of(NINE, policy=policy)
    *paused, healthy = NINE
    for name in paused:
        world.store.apply(assigned(name, "2"), policy=policy)
        world.store.annotate(name, pause=assigned(name, "2").revision)
    await world.passes(8)
    assert {world.store.objects[name].status.rollout.paused for name in paused} == {True}
    world.store.apply(assigned(healthy, "2"), policy=policy)
    await world.passes(3)

    candidate = world.store.objects[healthy].roles.candidate
    assert candidate.group is not None


async def test_candidates_that_failed_displace_nobody() -> None:
    world = await world_of(NINE)
    *stuck, bad = NINE
    world.fleet.verdicts[assigned(bad, "2").revision] = Verdict("GoldenFailed")
    world.store.apply(assigned(bad, "2"))
    await world.passes(5)
    for name in stuck:
        world.fleet.nodeless.add(assigned(name, "2").revision)
        world.store.apply(assigned(name, "2"))
    await world.passes(30, seconds_each=60)

    assert {world.role(name, "candidate")[1] for name in stuck} == {assigned(name, "2").revision for name in stuck}
    assert world.condition(bad, "Stalled") == ("True", "GoldenFailed")


async def test_a_pool_that_is_not_ready_for_long_is_stalled() -> None:
    world = World()
    world.fleet.nodeless.add("main")
    world.store.apply(assigned("coins"))
    said = []
    for _ in range(13):
        await world.passes(1, seconds_each=60)
        status = world.store.pool.status
        said.append(next(each for each in status.conditions if each.type == "Stalled").status)

    assert said[:10] == ["False"] * 10
    assert said[-1] == "True"

    world.fleet.nodeless.clear()
    await world.passes(5)

    stalled, reconciling = (
        next(each for each in world.store.pool.status.conditions if each.type == kind)
        for kind in ("Stalled", "Reconciling")
    )
    assert (stalled.status, reconciling.status) == ("False", "False")
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_eight_candidates_without_a_node_let_a_healthy_ninth_model_pass_on_a_cluster() -> None:
    """What stalled is in the statuses: the operator starts anew meanwhile."""
    world = ClusterWorld()
    world.apply_pool()
    for name in NINE:
        world.apply(model_manifest(name))
    await world.turns(30)
    *stuck, healthy = NINE
    world.homeless |= {f"-{name}-" for name in stuck}
    for name in stuck:
        world.apply(model_manifest(name, "2"))
    await world.turns(3)
    assert len(world.groups()) == 1 + MAX_CANDIDATE_GROUPS
    world.apply(model_manifest(healthy, "2"))
    await world.turns(6, seconds_each=60)

    assert world.condition(healthy, "Progressing") == ("True", "Queued")

    world.restart()
    await world.turns(6, seconds_each=60)
    await world.turns(4)

    assert world.status(healthy)["observedGeneration"] == 2
    assert world.condition(healthy, "Ready") == ("True", "Serving")
    stalled = [name for name in stuck if world.condition(name, "Stalled") == ("True", "ProgressDeadlineExceeded")]
    assert len(stalled) >= MAX_CANDIDATE_GROUPS - 1
    assert {name for name, reason in world.told() if reason == "ProgressDeadlineExceeded"} == set(stuck)

    world.homeless.clear()
    await world.turns(12)

    assert {world.condition(name, "Stalled") for name in NINE} == {("False", "AsWanted")}
    assert {world.status(name)["observedGeneration"] for name in NINE} == {2}
