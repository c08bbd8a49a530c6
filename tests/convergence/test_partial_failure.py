"""An object that the API refuses holds what depends on it: all else is applied, rolled back and deleted without it."""

from __future__ import annotations

from typing import Any

from convergence.test_cluster import final_state
from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Fault, Faulty, refusal
from segserve_common.api_errors import ApiError, ConflictError, ForbiddenError, InvalidError, UnavailableError
from segserve_common.kube.kinds import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    MODELS,
    POOLS,
    REVISIONS,
    SERVICE_ACCOUNTS,
    Kind,
)
from segserve_common.kube.names import plan_name
from segserve_common.kube.shards import shard_of
from segserve_operator.core.world.observed import MAIN

QUOTA = "exceeded quota: objects, requested: count/deployments.apps=1, used: 9, limited: 9"


def quota() -> ApiError:
    return ForbiddenError(QUOTA, status=403)


def refusing(world: ClusterWorld, *faults: Fault) -> Faulty:
    """Let the operator go on, with an API server that refuses something from now on."""
    world.api = faulty = Faulty(world.kube, *faults, clock=lambda: world.now_s)
    world.restart()
    return faulty


def refused(kind: Kind | None, part: str, **how: Any) -> Fault:
    """Refuse every write of such objects."""
    return Fault(how.pop("error", quota), verb=how.pop("verb", "write"), kind=kind, part=part, times=None, **how)


async def served(*names: str, **spec: Any) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool()
    for name in names:
        world.apply(model_manifest(name, **spec))
    await world.turns(8)
    assert {world.condition(name, "Ready") for name in names} == {("True", "Serving")}
    return world


def condition(world: ClusterWorld, kind: str, model: str | None = None) -> dict[str, str]:
    """Return a condition of a model, or of the pool."""
    found = world.kube.peek(MODELS, NAMESPACE, model) if model else world.kube.peek(POOLS, NAMESPACE, KEY.pool)
    said: dict[str, str] = next(each for each in found["status"]["conditions"] if each["type"] == kind)
    return said


def main_of(world: ClusterWorld) -> str:
    (main,) = (group for group in world.groups() if group.startswith(MAIN))
    return main


def without(state: dict[str, Any], model: str) -> dict[str, Any]:
    """Return a final state without everything that is about one model."""
    return {
        "children": [text for text in state["children"] if f"{model}-" not in text and not text.endswith(model)],
        "weights": {name: weights for name, weights in state["weights"].items() if name != model},
        "held": {
            group: {name: revision for name, revision in held.items() if name != model}
            for group, held in state["held"].items()
            if not group.startswith(f"{model}-")
        },
        "conditions": {key: said for key, said in state["conditions"].items() if key[0] != model},
    }


async def many(world: ClusterWorld) -> None:
    """Of 50 served models one is edited; of the others some are edited, rolled back and deleted, and some come."""
    names = [f"model-{number:02}" for number in range(50)]
    world.apply_pool()
    for name in names:
        world.apply(model_manifest(name, keepPrevious="10s"))
    await world.turns(8)
    for name in names[1:3]:
        world.apply(model_manifest(name, "2", keepPrevious="1h"))
    await world.turns(8)
    world.apply(model_manifest(names[0], "2", keepPrevious="10s"))
    for name in names[1:3]:
        world.apply(model_manifest(name, keepPrevious="1h"))
    for name in names[3:6]:
        world.apply(model_manifest(name, "3", keepPrevious="10s"))
    for name in names[6:9]:
        world.delete(MODELS, name)
    world.apply(model_manifest("another", keepPrevious="10s"))
    await world.turns(16, seconds_each=5)


async def test_of_50_models_one_is_refused_and_the_others_do_as_if_it_were_not_there() -> None:
    expected, world = ClusterWorld(), ClusterWorld()
    await many(expected)
    refusing(world, refused(SERVICE_ACCOUNTS, "model-00-"))

    await many(world)

    assert world.status("model-00")["roles"]["candidate"]["group"]
    assert world.condition("model-00", "Degraded") == ("True", "QuotaExceeded")
    assert without(final_state(world), "model-00") == without(final_state(expected), "model-00")
    assert world.condition("model-03", "Degraded") == ("False", "AsWanted")
    assert "model-06" not in world.routes()


async def test_a_revert_moves_all_requests_in_the_next_passes_while_another_models_first_object_is_refused() -> None:
    world = await served("a", "b", keepPrevious="1h")
    main = main_of(world)
    world.apply(model_manifest("a", "2", keepPrevious="1h"))
    await world.turns(8)
    (own,) = world.weights("a")
    assert own != main
    refusing(world, refused(SERVICE_ACCOUNTS, "b-"))
    world.apply(model_manifest("b", "2", keepPrevious="1h"))
    await world.turns(5)

    world.apply(model_manifest("a", keepPrevious="1h"))
    await world.run_pass()

    assert world.weights("a") == {main: 100}
    assert world.status("a")["roles"]["stable"]["group"] == main


async def test_a_model_says_what_was_refused_in_the_apis_own_words_until_it_is_allowed() -> None:
    world = await served("a", "b")
    faulty = refusing(world, refused(DEPLOYMENTS, "b-"))
    world.apply(model_manifest("b", "2"))
    await world.turns(3)

    degraded = condition(world, "Degraded", "b")
    assert (degraded["status"], degraded["reason"]) == ("True", "QuotaExceeded")
    assert QUOTA in degraded["message"]
    assert degraded["message"].startswith("Deployment segserve-default--b-"), degraded["message"]
    assert condition(world, "Degraded")["reason"] == "QuotaExceeded"
    assert world.condition("a", "Degraded") == ("False", "AsWanted")
    assert world.condition("b", "Ready") == ("True", "Serving")

    faulty.heal()
    await world.turns(45)

    assert world.condition("b", "Degraded") == ("False", "AsWanted")
    assert world.pool_condition("Degraded") == ("False", "AsWanted")
    assert world.status("b")["roles"]["stable"]["revision"] == next(iter(world.held(*world.weights("b")).values()))


async def test_a_refused_object_of_main_is_told_by_the_pool_and_referred_to_by_the_models_that_wait_for_it() -> None:
    world = ClusterWorld()
    faulty = refusing(world, refused(DEPLOYMENTS, "main-"))
    world.apply_pool()
    world.apply(model_manifest("a"))
    await world.turns(4)

    assert QUOTA in condition(world, "Degraded")["message"]
    said = condition(world, "Degraded", "a")
    assert (said["status"], said["reason"]) == ("True", "QuotaExceeded")
    assert "the pool's conditions" in said["message"]

    faulty.heal()
    await world.turns(45)

    assert world.condition("a", "Ready") == ("True", "Serving")
    assert world.pool_condition("Degraded") == ("False", "AsWanted")


async def test_a_refused_object_of_the_gateway_is_told_by_the_pool_and_weights_move_on() -> None:
    world = await served("a", keepPrevious="1h")
    main = main_of(world)
    refusing(world, refused(DEPLOYMENTS, "gateway", error=refusal(InvalidError)))
    world.apply_pool(gateway={"replicas": 3})
    world.apply(model_manifest("a", "2", keepPrevious="1h"))
    await world.turns(8)

    assert main not in world.weights("a")
    degraded = condition(world, "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "Invalid")
    assert "gateway" in degraded["message"]


async def test_a_shard_of_the_plan_that_is_refused_holds_the_weights_of_its_own_models_only() -> None:
    world = await served("a", "b", "c", "d", "e", keepPrevious="1h")
    main = main_of(world)
    names = "abcde"
    stuck = shard_of("a")
    others = [name for name in names if shard_of(name) != stuck]
    assert others
    refusing(world, refused(CONFIG_MAPS, plan_name(KEY.pool, stuck), error=refusal(InvalidError)))
    for name in names:
        world.apply(model_manifest(name, "2", keepPrevious="1h"))
    await world.turns(12)

    assert world.weights("a") == {main: 100}
    assert [name for name in others if main in world.weights(name)] == []
    assert condition(world, "Degraded")["reason"] == "Invalid"


async def test_a_group_that_cannot_be_removed_holds_neither_other_groups_nor_deletions() -> None:
    world = await served("a", "b", "c", keepPrevious="0s")
    refusing(world, refused(DEPLOYMENTS, "a-", verb="delete"))
    for name in ("a", "b"):
        world.apply(model_manifest(name, "2", keepPrevious="0s"))
    world.delete(MODELS, "c")
    await world.turns(20)

    assert sorted(group.partition("-")[0] for group in world.groups()) == ["a", "main"]
    assert world.kube.peek(MODELS, NAMESPACE, "c") is None
    assert world.weights("a") == world.weights("b") == {main_of(world): 100}
    assert condition(world, "Degraded")["reason"] == "QuotaExceeded"


async def test_a_revision_whose_record_is_refused_leaves_its_model_as_it_is_and_the_others_go_on() -> None:
    world = await served("a", "beta", keepPrevious="1h")
    main = main_of(world)
    faulty = refusing(world, refused(REVISIONS, "beta-"))
    world.apply(model_manifest("beta", "2", keepPrevious="1h"))
    world.apply(model_manifest("a", "2", keepPrevious="1h"))
    await world.turns(8)

    assert main not in world.weights("a")
    assert world.weights("beta") == {main: 100}
    degraded = condition(world, "Degraded", "beta")
    assert (degraded["status"], degraded["reason"]) == ("True", "QuotaExceeded")
    assert QUOTA in degraded["message"]

    faulty.heal()
    await world.turns(45)

    assert main not in world.weights("beta")
    assert world.condition("beta", "Degraded") == ("False", "AsWanted")


async def test_an_event_that_is_refused_holds_no_status() -> None:
    world = ClusterWorld()
    refusing(world, refused(EVENTS, ""))
    world.apply_pool()
    world.apply(model_manifest("a"))
    await world.turns(8)

    assert world.condition("a", "Ready") == ("True", "Serving")
    assert world.pool_condition("Ready") == ("True", "Serving")


async def test_a_status_that_is_refused_slows_no_other_model() -> None:
    world = await served("a", "b", keepPrevious="1h")
    main = main_of(world)
    faulty = refusing(world, refused(MODELS, "b", verb="status", error=refusal(InvalidError)))
    world.apply(model_manifest("b", "2", keepPrevious="1h"))
    world.apply(model_manifest("a", "2", keepPrevious="1h"))
    results = []
    for _ in range(8):
        results.append(await world.run_pass())
        await world.work()
        world.now_s += 1

    assert -1 not in results, "a pass that fails is repeated with a delay, which all models wait for"
    assert main not in world.weights("a")
    assert world.weights("b") == {main: 100}

    faulty.heal()
    await world.turns(45)

    assert main not in world.weights("b")


async def test_failures_that_pass_in_a_moment_are_not_told() -> None:
    world = await served("a")
    refusing(world, Fault(refusal(ConflictError), verb="apply", kind=DEPLOYMENTS, times=2))
    world.apply(model_manifest("a", "2"))
    said = []
    for _ in range(6):
        await world.turns(1)
        said.append(world.condition("a", "Degraded"))

    assert set(said) == {("False", "AsWanted")}
    assert len(world.groups()) == 2


async def test_an_api_that_answers_nothing_ends_the_pass_and_is_told_by_no_status() -> None:
    world = await served("a", keepPrevious="1h")
    main = main_of(world)
    faulty = refusing(world, Fault(refusal(UnavailableError), verb="write", times=None, until=world.now_s + 60))
    world.apply(model_manifest("a", "2", keepPrevious="1h"))

    assert await world.run_pass() == -1

    await world.turns(70)
    assert main not in world.weights("a")
    degraded = [call for call in faulty.calls if call.verb == "status" and call.kind == POOLS]
    assert world.condition("a", "Degraded") == ("False", "AsWanted")
    assert len(degraded) < 20


async def test_other_words_of_the_scheduler_are_one_write_and_not_one_a_model() -> None:
    names = [f"model-{number}" for number in range(30)]
    world = await served(*names)
    main = main_of(world)
    world.room = 1
    world.apply_pool(server={"image": "server:2", "version": "26.05"})
    await world.turns(5)
    faulty = refusing(world)
    await world.turns(2)
    for number in range(5):
        world.scheduler_says = f"0/{1000 + number} nodes are available: {number} Insufficient nvidia.com/gpu."
        await world.work()
        before = len(faulty.calls)
        for _ in range(3):
            await world.run_pass()
        written = [call.kind for call in faulty.calls[before:] if call.verb == "status"]
        assert written == [POOLS], f"{number}: {written}"

    assert {name for name in names if world.weights(name) != {main: 100}} == set()
    assert condition(world, "Degraded")["message"].endswith(world.scheduler_says)
