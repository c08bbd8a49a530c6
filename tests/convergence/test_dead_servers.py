"""What is kept of servers and gateways that are gone: nothing, without harm to those that are there."""

from __future__ import annotations

import pytest

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Fault, Faulty, refusal
from segserve_common.api_errors import ForbiddenError
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, ROLES
from segserve_common.kube.names import GATEWAY, REPORT_KEY, object_name, report_name, reports_name
from segserve_operator.adapters.kube import reports


async def served(**spec: object) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool(**spec)
    world.apply(model_manifest("coins"))
    await world.turns()
    return world


def main_of(world: ClusterWorld) -> str:
    (main,) = world.groups()
    return main


def shared(world: ClusterWorld, group: str) -> dict[str, str]:
    found = world.kube.peek(CONFIG_MAPS, NAMESPACE, reports_name("default", group)) or {}
    return dict(found.get("binaryData", {}))


def pods_of(world: ClusterWorld, group: str) -> set[str]:
    prefix = object_name("default", group)
    return {pod["metadata"]["name"] for pod in world.kube.all(PODS) if pod["metadata"]["name"].startswith(prefix)}


def own_maps(world: ClusterWorld) -> dict[str, str]:
    named = {found["metadata"]["name"]: found for found in world.kube.all(CONFIG_MAPS, NAMESPACE)}
    return {
        name: found.get("binaryData", {}).get(REPORT_KEY) for name, found in named.items() if name[-7:] == "-report"
    }


async def test_of_forty_evicted_servers_no_report_is_left() -> None:
    world = await served()
    main = main_of(world)
    for _ in range(40):
        world.evict(object_name("default", main), 0)
        await world.turns(1)
    await world.turns(3)

    assert shared(world, main).keys() == pods_of(world, main)
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 1
    assert await world.run_pass() == 0


async def test_of_gateways_that_are_gone_no_report_is_left() -> None:
    world = await served()
    for _ in range(20):
        world.evict(object_name("default", GATEWAY), 0)
        await world.turns(1)
    await world.turns(3)

    assert shared(world, GATEWAY).keys() == pods_of(world, GATEWAY)
    assert await world.run_pass() == 0


async def test_many_reports_of_dead_servers_go_a_few_in_a_pass() -> None:
    world = await served()
    main = main_of(world)
    dead = {f"dead-{number}": "AAAA" for number in range(100)}
    world.kube.edit(CONFIG_MAPS, NAMESPACE, reports_name("default", main), {"binaryData": dead})
    world.api = counted = Faulty(world.kube)
    world.restart()
    await world.run_pass()
    asked = [call for call in counted.calls if call.kind == PODS and call.verb == "get"]

    assert len(asked) == reports.PRUNED_AT_ONCE
    assert len(shared(world, main)) == 101 - reports.PRUNED_AT_ONCE

    await world.turns(10)

    assert shared(world, main).keys() == pods_of(world, main)


async def test_a_server_that_is_not_listed_yet_loses_no_report() -> None:
    world = await served(replicas=2)
    main = main_of(world)
    before = shared(world, main)
    for watch in list(world.kube.watches):
        watch.close()
    pod = sorted(pods_of(world, main))[0]
    found = world.kube.peek(PODS, NAMESPACE, pod)
    assert found is not None
    world.view.drop(PODS, found)
    for _ in range(5):
        await world.run_pass()

    assert shared(world, main) == before


async def test_a_refused_removal_holds_nothing_up() -> None:
    world = await served()
    main = main_of(world)
    faulty = Faulty(world.kube, Fault(refusal(ForbiddenError), verb="get", kind=PODS, times=None))
    world.api = faulty
    world.restart()
    world.kube.edit(CONFIG_MAPS, NAMESPACE, reports_name("default", main), {"binaryData": {"dead": "AAAA"}})
    world.apply(model_manifest("cells"))
    await world.turns(10)

    assert world.condition("cells", "Ready") == ("True", "Serving")
    assert "dead" in shared(world, main)

    faulty.heal()
    await world.turns(2)

    assert "dead" not in shared(world, main)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make two servers of a model a large group."""
    monkeypatch.setattr(reports, "MAX_SHARED_REPORTS", 1)


@pytest.mark.usefixtures("large")
async def test_in_a_large_group_each_server_reports_in_a_map_of_its_own_that_goes_with_it() -> None:
    world = await served(replicas=3)
    main = main_of(world)
    assert own_maps(world).keys() == {report_name(pod) for pod in pods_of(world, main)}
    assert all(own_maps(world).values())
    assert shared(world, main) == {}
    assert await world.run_pass() == 0

    for _ in range(10):
        world.evict(object_name("default", main), 1)
        await world.turns(2)
    await world.turns(3)

    assert own_maps(world).keys() == {report_name(pod) for pod in pods_of(world, main)}
    assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 3
    (role,) = (each for each in world.kube.all(ROLES) if each["metadata"]["name"] == reports_name("default", main))
    assert set(role["rules"][0]["resourceNames"]) == own_maps(world).keys()
    assert role["rules"][0]["verbs"] == ["get", "patch"]
    assert await world.run_pass() == 0


async def test_a_group_that_grows_moves_its_reports_while_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await served(replicas=2)
    main = main_of(world)
    assert shared(world, main).keys() == pods_of(world, main)
    monkeypatch.setattr(reports, "MAX_SHARED_REPORTS", 2)
    world.apply_pool(replicas=3)
    fewest = 9
    for _ in range(8):
        await world.turns(1)
        fewest = min(fewest, len(world.routes()["coins"]["shares"][0]["endpoints"]))

    assert fewest == 2
    assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 3
    assert shared(world, main) == {}

    world.apply_pool(replicas=1)
    await world.turns(4)

    assert own_maps(world).keys() == {report_name(pod) for pod in pods_of(world, main)}
    assert shared(world, main) == {}


@pytest.mark.usefixtures("large")
async def test_a_report_of_its_own_that_somebody_deleted_takes_no_server_out() -> None:
    world = await served(replicas=3)
    for name in own_maps(world):
        world.delete(CONFIG_MAPS, name)
        await world.run_pass()
        assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 3
    await world.turns(3)

    assert all(own_maps(world).values())
    assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 3
