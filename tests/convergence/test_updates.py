"""Servers are replaced at a pool's pace: by its own changes and by requests, never by a new operator alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fakes.cluster_world import DEFAULTS, NAMESPACE, ClusterWorld, model_manifest
from fakes.deaths import SWEEP, deaths
from fakes.kube_faults import Fault, Faulty, crash_at
from fakes.pools import VARIABLE
from segserve_common.kube.kinds import DEPLOYMENTS, PODS, POOLS, ROLE_BINDINGS, SERVICE_ACCOUNTS
from segserve_common.kube.names import COMPONENT_LABEL, POOL_LABEL, SERVER

NEWER = replace(DEFAULTS, server_image="server:2")
OTHER_SERVER = {"image": "server:9", "version": "26.05"}


async def served(models: int = 1, **spec: Any) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool(**spec)
    for number in range(models):
        world.apply(model_manifest(f"model-{number}"))
    await world.turns(10)
    return world


def servers(world: ClusterWorld) -> dict[str, str]:
    """Return the uids of all pods of servers, by name."""
    pods = [pod for pod in world.kube.all(PODS, NAMESPACE) if pod["metadata"]["labels"][COMPONENT_LABEL] == SERVER]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def images(world: ClusterWorld) -> set[str]:
    pods = [pod for pod in world.kube.all(PODS, NAMESPACE) if pod["metadata"]["labels"][COMPONENT_LABEL] == SERVER]
    return {container["image"] for pod in pods for container in pod["spec"]["containers"]}


def upgrade(world: ClusterWorld) -> None:
    """Replace the operator by one with another default image."""
    world.defaults = NEWER
    world.restart()


def request(world: ClusterWorld, text: str) -> None:
    world.kube.edit(POOLS, NAMESPACE, "default", {"metadata": {"annotations": {"segserve.dev/update": text}}})


async def test_a_new_operator_starts_no_server_and_says_what_it_would_change() -> None:
    world = await served(replicas=2)
    before, routes = servers(world), world.routes()
    upgrade(world)
    await world.turns(10)

    assert servers(world) == before
    assert world.routes() == routes
    assert world.pool_condition("UpdateAvailable") == ("True", "OperatorChanged")
    assert "server:1 -> server:2" in world.pool_message("UpdateAvailable")
    assert world.pool_condition("Ready") == ("True", "Serving")
    assert world.pool_condition("Progressing") == ("False", "Idle")
    revision = world.kube.revision
    for _ in range(5):
        assert await world.run_pass() == 0
    assert world.kube.revision == revision


async def test_servers_of_an_earlier_template_are_scaled_and_keep_their_other_objects() -> None:
    world = await served(replicas=2)
    before = servers(world)
    upgrade(world)
    await world.turns(3)
    for binding in world.kube.all(ROLE_BINDINGS, NAMESPACE):
        world.delete(ROLE_BINDINGS, binding["metadata"]["name"])
    world.apply_pool(replicas=3)
    await world.turns(6)

    assert before.items() <= servers(world).items()
    assert len(servers(world)) == 3
    assert images(world) == {"server:1"}
    assert len(world.kube.all(ROLE_BINDINGS, NAMESPACE)) >= 1
    assert len(world.routes()["model-0"]["shares"][0]["endpoints"]) == 3


async def test_servers_of_an_earlier_template_are_replaced_by_equal_ones_if_their_tokens_become_void() -> None:
    world = await served()
    (main,) = world.groups()
    upgrade(world)
    await world.turns(3)
    world.now_s += 10
    for account in world.kube.all(SERVICE_ACCOUNTS, NAMESPACE):
        world.delete(SERVICE_ACCOUNTS, account["metadata"]["name"])
    await world.turns(6)

    (deployment,) = (d for d in world.kube.all(DEPLOYMENTS) if "main" in d["metadata"]["name"])
    assert "segserve.dev/service-account" in deployment["spec"]["template"]["metadata"]["annotations"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "server:1"
    assert world.groups() == {main}
    assert [await world.run_pass() for _ in range(3)] == [0, 0, 0]


async def test_a_request_adopts_the_template_of_a_new_operator_and_is_answered_once() -> None:
    world = await served()
    upgrade(world)
    await world.turns(3)
    request(world, "2026-11-21")
    await world.turns(12)

    assert images(world) == {"server:2"}
    assert world.pool_condition("UpdateAvailable") == ("", "")
    world.defaults = replace(DEFAULTS, server_image="server:3")
    world.restart()
    await world.turns(5)
    assert images(world) == {"server:2"}


async def test_the_pools_own_change_takes_the_new_operators_template_along() -> None:
    world = await served()
    upgrade(world)
    await world.turns(3)
    world.apply_pool(server=VARIABLE)
    await world.turns(12)

    assert images(world) == {"server:2"}
    assert len(world.groups()) == 1


async def test_servers_that_never_came_up_are_replaced_by_a_new_operator() -> None:
    world = ClusterWorld()
    world.unpullable.add("server:1")
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns(5)
    upgrade(world)
    await world.turns(10)

    assert images(world) == {"server:2"}
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_deleted_deployment_of_an_earlier_template_comes_back_from_the_present_one() -> None:
    world = await served()
    upgrade(world)
    await world.turns(3)
    (deployment,) = (d for d in world.kube.all(DEPLOYMENTS) if "main" in d["metadata"]["name"])
    world.delete(DEPLOYMENTS, deployment["metadata"]["name"])
    await world.turns(12)

    assert images(world) == {"server:2"}
    assert world.condition("model-0", "Ready") == ("True", "Serving")


async def test_a_pool_whose_status_is_lost_keeps_its_servers() -> None:
    world = await served()
    before = servers(world)
    world.kube.edit_status(POOLS, NAMESPACE, "default", {"status": {"template": None}})
    upgrade(world)
    await world.turns(5)

    assert servers(world) == before


async def test_a_candidate_of_a_model_is_served_after_a_new_operator_as_before() -> None:
    world = await served()
    upgrade(world)
    await world.turns(3)
    before = servers(world)
    world.apply(model_manifest("model-0", "2", keepPrevious="20s"))
    await world.turns(20, seconds_each=5)

    assert world.condition("model-0", "Ready") == ("True", "Serving")
    assert servers(world) == before
    (main,) = world.groups()
    assert world.weights("model-0") == {main: 100}


async def capacity_kept(world: ClusterWorld, *, most: int, least: int, turns: int = 60) -> list[tuple[int, int]]:
    """Let it run until nothing changes; return the numbers of servers and of those that answer at each moment."""
    seen = []
    for _ in range(turns):
        await world.turns(1, seconds_each=2)
        routes = world.routes().values()
        endpoints = [sum(len(s["endpoints"]) for s in route["shares"] if s["weight"]) for route in routes]
        alive = {pod["status"]["podIP"] for pod in world.kube.all(PODS, NAMESPACE)}
        for route in routes:
            for share in route["shares"]:
                assert share["weight"] == 0 or share["endpoints"]
        assert alive
        seen.append((len(servers(world)), min(endpoints)))
        assert seen[-1][0] <= most, seen
        assert seen[-1][1] >= least, seen
    return seen


@pytest.mark.parametrize(
    ("update", "most", "least"),
    [
        pytest.param({}, 5, 4, id="by default a quarter more"),
        pytest.param({"maxSurge": 1}, 5, 4, id="one more"),
        pytest.param({"maxSurge": 0, "maxUnavailable": 1}, 4, 3, id="one less"),
        pytest.param({"maxSurge": "50%", "maxUnavailable": "25%"}, 6, 3, id="percentages"),
    ],
)
async def test_an_update_needs_no_more_servers_than_allowed_and_keeps_the_capacity(
    update: dict[str, Any], most: int, least: int
) -> None:
    world = await served(models=3, replicas=4, update=update)
    world.apply_pool(replicas=4, update=update, server=OTHER_SERVER)
    await capacity_kept(world, most=most, least=least)

    assert images(world) == {"server:9"}
    (main,) = world.groups()
    assert {group for n in range(3) for group in world.weights(f"model-{n}")} == {main}
    assert len(servers(world)) == 4
    assert world.pool_condition("Progressing") == ("False", "Idle")
    revision = world.kube.revision
    await world.run_pass()
    assert world.kube.revision == revision


async def test_a_revision_changes_during_an_update_without_a_gap() -> None:
    world = await served(replicas=3, update={"maxSurge": 1})
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(4, seconds_each=2)
    assert images(world) == {"server:1", "server:9"}
    first = world.status("model-0")["roles"]["stable"]["revision"]
    world.apply(model_manifest("model-0", "2", keepPrevious="30s"))
    for _ in range(40):
        await world.turns(1, seconds_each=2)
        assert all(share["endpoints"] for share in world.routes()["model-0"]["shares"] if share["weight"])

    assert images(world) == {"server:9"}
    assert world.status("model-0")["roles"]["stable"]["revision"] != first
    (main,) = world.groups()
    assert world.weights("model-0") == {main: 100}


async def test_a_revision_is_taken_back_during_an_update_to_all_servers_of_both_templates() -> None:
    world = await served(replicas=3, update={"maxSurge": 1})
    world.apply(model_manifest("model-0", "2", keepPrevious="1h"))
    await world.turns(6, seconds_each=2)
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(5, seconds_each=2)
    world.apply(model_manifest("model-0", keepPrevious="1h"))
    await world.turns(1)

    (share,) = (share for share in world.routes()["model-0"]["shares"] if share["weight"])
    assert share["group"].startswith("main-")
    assert len(share["endpoints"]) >= 3


async def test_a_template_that_is_taken_back_during_its_update_ends_with_the_former_servers() -> None:
    world = await served(replicas=3, update={"maxSurge": 1})
    (main,) = world.groups()
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(5, seconds_each=2)
    assert images(world) == {"server:1", "server:9"}
    world.apply_pool(replicas=3, update={"maxSurge": 1})
    await capacity_kept(world, most=4, least=3, turns=20)

    assert images(world) == {"server:1"}
    assert world.groups() == {main}


async def test_a_third_template_during_an_update_takes_no_more_servers() -> None:
    world = await served(replicas=3, update={"maxSurge": 1})
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(5, seconds_each=2)
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server={"image": "server:10", "version": "26.06"})
    await capacity_kept(world, most=4, least=3, turns=30)

    assert images(world) == {"server:10"}
    assert len(world.groups()) == 1


async def test_without_room_the_update_is_stalled_and_everything_else_goes_on() -> None:
    world = await served(replicas=2)
    before = servers(world)
    world.room = 2
    world.apply_pool(replicas=2, server=OTHER_SERVER)
    await world.turns(8, seconds_each=120)

    assert before.items() <= servers(world).items()
    assert world.pool_condition("Ready") == ("True", "Serving")
    assert world.pool_condition("Degraded") == ("True", "Unschedulable")
    assert world.pool_condition("Stalled") == ("True", "Unschedulable")
    assert world.pool_message("Progressing").startswith("0 of 2 servers")

    world.room = 3
    await world.turns(10)

    assert images(world) == {"server:9"}
    assert world.pool_condition("Stalled")[0] != "True"


async def test_recreate_ends_all_servers_before_it_starts_others() -> None:
    world = await served(replicas=2, update={"strategy": "Recreate"})
    world.room = 2
    world.apply_pool(replicas=2, update={"strategy": "Recreate"}, server=OTHER_SERVER)
    told = set()
    for _ in range(15):
        await world.turns(1)
        told.add(world.pool_condition("Progressing"))
        assert len(images(world)) <= 1

    assert ("True", "Updating") in told
    assert images(world) == {"server:9"}
    assert world.condition("model-0", "Ready") == ("True", "Serving")


async def test_a_paused_update_stays_where_it_is_and_models_go_on() -> None:
    world = await served(replicas=3, update={"maxSurge": 1})
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(5)
    world.apply_pool(replicas=3, update={"maxSurge": 1, "paused": True}, server=OTHER_SERVER)
    await world.turns(3)
    before = servers(world)
    assert images(world) == {"server:1", "server:9"}
    assert world.pool_condition("Progressing") == ("False", "UpdatePaused")
    world.apply(model_manifest("model-0", "2", keepPrevious="10s"))
    world.apply(model_manifest("other"))
    await world.turns(20, seconds_each=5)

    assert servers(world) == before
    assert world.condition("model-0", "Ready") == ("True", "Serving")
    assert world.condition("other", "Ready") == ("True", "Serving")
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(20)
    assert images(world) == {"server:9"}


async def test_a_paused_pool_can_be_scaled() -> None:
    world = await served(replicas=2, update={"paused": True})
    world.apply_pool(replicas=3, update={"paused": True}, server=OTHER_SERVER)
    await world.turns(6)

    assert images(world) == {"server:1"}
    assert len(servers(world)) == 3


def by_pool(world: ClusterWorld) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pod in world.kube.all(PODS, NAMESPACE):
        labels = pod["metadata"]["labels"]
        if labels[COMPONENT_LABEL] == SERVER:
            found.setdefault(labels[POOL_LABEL], []).append(pod["spec"]["containers"][0]["image"])
    return found


async def updated(*faults: Fault) -> tuple[dict[str, object], Faulty]:
    """Return where an update ends during which these faults come, and the API that had them."""
    world = ClusterWorld()
    world.apply_pool(replicas=2, update={"maxSurge": 1})
    world.apply(model_manifest("coins"))
    await world.turns(8)
    world.api = faulty = Faulty(world.kube, *faults)
    world.restart()
    world.apply_pool(replicas=2, update={"maxSurge": 1}, server=OTHER_SERVER)
    for _ in range(22):
        await world.turns(1, seconds_each=2)
        assert len(servers(world)) <= 3
    return {"weights": world.weights("coins"), "groups": world.groups(), "servers": set(servers(world))}, faulty


@SWEEP
async def test_an_operator_that_dies_at_any_moment_of_an_update_goes_on_with_it(every: bool) -> None:
    expected, counted = await updated()
    assert counted.writes > 40

    for number, after in deaths(counted.sorts_of_writes, every=every):
        found, _ = await updated(crash_at(number, after=after))
        assert found == expected, f"died at write {number}, {after=}"


async def test_a_template_under_which_a_model_fails_stops_at_its_first_server() -> None:
    world = await served(replicas=3, update={"maxSurge": 1})
    world.fails_with = {"server:9": "LoadFailed"}
    world.apply_pool(replicas=3, update={"maxSurge": 1}, server=OTHER_SERVER)
    await world.turns(10, seconds_each=120)

    assert sorted(image for images in by_pool(world).values() for image in images) == ["server:1"] * 3 + ["server:9"]
    assert len(world.routes()["model-0"]["shares"][0]["endpoints"]) == 3
    assert world.pool_condition("Stalled") == ("True", "LoadFailed")
    assert world.pool_condition("Ready") == ("True", "Serving")
    assert world.condition("model-0", "Ready") == ("True", "Serving")


async def test_a_rollout_goes_on_through_an_update_of_the_servers() -> None:
    world = await served(replicas=2)
    (main,) = world.groups()
    rollout = {"strategy": "canary", "steps": [{"weight": 10}, {"weight": 50}]}
    world.apply(model_manifest("model-0", "2", rollout=rollout))
    await world.turns(8)
    before = world.status("model-0")
    world.apply_pool(replicas=2, server=OTHER_SERVER)
    await world.turns(30)
    after = world.status("model-0")

    assert before["rollout"]["phase"] == after["rollout"]["phase"]
    assert before["roles"]["candidate"] == after["roles"]["candidate"]
    assert after["roles"]["stable"]["group"] != main
    assert set(world.weights("model-0").values()) <= {90, 10, 100}
