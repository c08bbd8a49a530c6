"""A gateway that changes its plan, restarts, or is told nonsense."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fakes.gateway import RunningGateway
from fakes.gateway_clients import Load, ask, by_grpc, served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.adapters.traffic.envoy_files import ConfigurationRejectedError
from segserve_operator.adapters.traffic.envoy_messages import CLUSTER, ROUTE_CONFIGURATION, parse, parse_json, to_json
from segserve_operator.adapters.traffic.envoy_routes import encode_routes
from segserve_operator.adapters.traffic.envoy_updater import render
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.core]


def at(*servers: StubTriton) -> TrafficPlan:
    """Return a plan with one group of these servers."""
    endpoints = tuple(server.endpoint for server in servers)
    return TrafficPlan((Route("coins", (Share("main", "coins-old", 100, endpoints),)),), endpoints)


async def test_not_one_request_fails_while_weights_groups_and_servers_change(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    old.delay_s = new.delay_s = 0.005
    await gateway.traffic.apply(served(old))
    load = Load(gateway)
    plans = [
        served(old, new, 0),
        served(old, new, 50),
        served(old, new, 100),
        served(new),  # the same group, another server and revision
        TrafficPlan((*served(new).routes, *served(old, model="cells").routes), (old.endpoint, new.endpoint)),
        served(new, old, 50),
        served(old),
    ]

    async with load:
        for _ in range(5):
            for plan in plans:
                await gateway.traffic.apply(plan)
                assert (await gateway.traffic.observe()).plan == plan

    assert load.failures == []
    assert set(load.answers) == {"old", "new"}


async def test_not_one_request_of_eight_clients_fails_during_fifty_changes_of_weight(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    old.delay_s = new.delay_s = 0.005
    await gateway.traffic.apply(served(old, new, 0))
    load = Load(gateway, clients=8)

    async with load:
        for weight in (10, 100, 50, 0, 90) * 10:
            await gateway.traffic.apply(served(old, new, weight))

    assert load.failures == []
    assert set(load.answers) == {"old", "new"}


async def test_not_one_request_fails_while_servers_come_to_a_group_and_leave_it(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    old.delay_s = new.delay_s = 0.005
    await gateway.traffic.apply(at(old, new))
    load = Load(gateway, clients=8)

    async with load:
        for _ in range(10):
            for told in (at(old), at(old, new), at(new), at(new, old)):
                await gateway.traffic.apply(told)

    assert load.failures == []
    assert set(load.answers) == {"old", "new"}


async def test_a_change_of_weight_rewrites_neither_clusters_nor_routes(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old, new, 10))
    files = [gateway.folder / "clusters/clusters.pb", gateway.folder / "routes/routes.pb"]
    before = [file.stat().st_ino for file in files]

    await gateway.traffic.apply(served(old, new, 40))

    assert [file.stat().st_ino for file in files] == before
    assert (await gateway.traffic.observe()).plan == served(old, new, 40)


async def test_envoy_reads_in_the_files_what_was_rendered(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    plan = TrafficPlan((replace(served(old, new, 30).routes[0], exposed=("coins.network",)),), (old.endpoint,))
    await gateway.traffic.apply(plan)
    rendered = render(plan, None, timeout_s=60)
    tables = [model.table for model in rendered.models.values()]

    transport = httpx.AsyncHTTPTransport(uds=str(gateway.folder / "admin.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://envoy") as client:
        dumps = (await client.get("/config_dump")).json()["configs"]
    clusters = [each["cluster"] for dump in dumps for each in dump.get("dynamic_active_clusters", ())]
    (routes,) = [each["route_config"] for dump in dumps for each in dump.get("dynamic_route_configs", ())]

    assert {cluster["name"]: parse_json(CLUSTER, cluster) for cluster in clusters} == {
        name: parse(CLUSTER, cluster.content) for name, cluster in rendered.clusters.items()
    }
    # As JSON: Envoy serialises the maps within an `Any` in an order of its own, and an `Any` is compared by its bytes.
    assert to_json(parse_json(ROUTE_CONFIGURATION, routes)) == to_json(
        parse(ROUTE_CONFIGURATION, encode_routes(tables, timeout_s=60))
    )


async def test_weights_outlive_an_envoy_that_is_killed_and_a_supervisor_that_starts_again(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old, new, 40))
    await gateway.traffic.apply(served(old, new, 0))
    await gateway.traffic.apply(served(old, new, 100))
    await gateway.traffic.apply(served(old, new, 99))

    gateway.kill()
    await gateway.resume()
    successor = EnvoyTraffic(gateway.folder, gateway.gateway)
    observed = await successor.observe()
    answers = {(await ask(gateway, "/v2/models/coins/infer")).json()["model_version"] for _ in range(20)}
    load = Load(gateway)
    async with load:
        await successor.apply(served(old, new, 100))
        await load.goes_on(len(load))  # what was on its way
        load.answers.clear()
        await load.goes_on()

    assert observed.plan == served(old, new, 99)
    assert "new" in answers
    assert load.failures == []
    assert set(load.answers) == {"new"}


async def test_an_envoy_killed_in_the_middle_of_a_change_follows_it_when_it_is_back(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    gateway.kill()

    with pytest.raises(EnvoyUnreachableError):
        await gateway.traffic.apply(served(old, new, 100))
    await gateway.resume()
    await gateway.traffic.apply(served(old, new, 100))

    assert (await gateway.traffic.observe()).plan == served(old, new, 100)
    assert (await ask(gateway, "/v2/models/coins/infer")).json()["model_version"] == "new"


async def test_callers_that_are_told_to_go_are_answered_until_they_do(serving: RunningGateway, old: StubTriton) -> None:
    load = Load(serving)

    async with load:
        await serving.traffic.drain()

        async def told_to_go() -> bool:
            return (await ask(serving, "/v2/models/coins/infer")).headers.get("connection") == "close"

        await eventually(told_to_go, "a caller is told to go")
        await load.goes_on(200)

    assert load.failures == []


async def test_a_request_in_flight_is_counted_and_ends_well_after_its_group_has_left_the_plan(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    old.hold()
    slow = asyncio.create_task(ask(gateway, "/v2/models/coins/infer"))
    slow_by_grpc = asyncio.create_task(asyncio.to_thread(by_grpc, gateway.authority))
    await gateway.in_flight({("coins", "main"): 2})

    share = Share("coins-new", "coins-new", 100, (new.endpoint,))
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),), (new.endpoint,)))
    meanwhile = await ask(gateway, "/v2/models/coins/infer")
    await gateway.in_flight({("coins", "main"): 2})
    old.release()
    answer, answer_by_grpc = await asyncio.gather(slow, slow_by_grpc)

    assert meanwhile.json()["model_version"] == "new"
    assert (answer.json()["model_version"], answer_by_grpc) == ("old", "old")
    await gateway.in_flight({})


async def test_a_request_in_flight_ends_well_after_its_server_has_left_the_group(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    old.hold()
    slow = asyncio.create_task(ask(gateway, "/v2/models/coins/infer"))
    await gateway.in_flight({("coins", "main"): 1})

    await gateway.traffic.apply(served(new))

    assert (await ask(gateway, "/v2/models/coins/infer")).json()["model_version"] == "new"
    old.release()
    assert (await slow).json()["model_version"] == "old"


async def test_an_envoy_that_was_killed_serves_the_last_plan_again(serving: RunningGateway, old: StubTriton) -> None:
    serving.kill()
    assert (await serving.traffic.observe()).plan is None

    await serving.start()

    assert (await serving.traffic.observe()).plan == served(old)
    assert (await ask(serving, "/v2/models/coins/infer")).status_code == 200


async def test_a_supervisor_that_starts_again_finds_the_plan_in_force(
    serving: RunningGateway, old: StubTriton, new: StubTriton, tmp_path: Path
) -> None:
    successor = EnvoyTraffic(tmp_path, serving.gateway)
    assert (await successor.observe()).plan == served(old)

    await successor.apply(served(old, new, 100))

    assert (await ask(serving, "/v2/models/coins/infer")).json()["model_version"] == "new"


async def test_a_plan_that_envoy_refuses_leaves_the_one_before_in_force(
    serving: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    share = Share("coins-new", "coins-new", 100, (Endpoint("not an address", 80, 81),))

    with pytest.raises(ConfigurationRejectedError, match="rejected"):
        await serving.traffic.apply(TrafficPlan((Route("coins", (share,)),)))

    assert (await serving.traffic.observe()).plan == served(old)
    assert (await ask(serving, "/v2/models/coins/infer")).status_code == 200
    await serving.traffic.apply(served(old, new, 100))
    assert (await ask(serving, "/v2/models/coins/infer")).json()["model_version"] == "new"
