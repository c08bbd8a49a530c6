"""Requests of one id: one revision as its weight grows, and one server, over both protocols of the real Envoy."""

from __future__ import annotations

import asyncio
import http.client
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import grpc
import httpx
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.gateway import RunningGateway, running_gateway
from fakes.triton import StubTriton
from fakes.waiting import HANG_S
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.core.traffic import Route, RouteAffinity, Share, TrafficPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.platform, pytest.mark.asyncio(loop_scope="module")]

IDS = [f"camera-{number:05}" for number in range(600)]
OLD, NEW = "coins-old", "coins-new"
FIRST = RouteAffinity(last=NEW, salt="coins-000001")


class Place(NamedTuple):
    """Who answered a request."""

    group: str
    server: str


@pytest.fixture(scope="module")
def servers() -> Iterator[list[StubTriton]]:
    with ExitStack() as stack:
        yield [stack.enter_context(StubTriton(f"server-{number}")) for number in range(5)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("sticky")
    async with running_gateway(folder, affinity=SessionAffinity(header="X-Camera", cookie="visitor")) as running:
        yield running


def plan(
    servers: Sequence[StubTriton],
    weight: int,
    *,
    old: int = 3,
    affinity: RouteAffinity | None = FIRST,
    model: str = "coins",
    promoted: bool = False,
) -> TrafficPlan:
    """Return the plan of a rollout: the first `old` servers have the stable revision, the last two the candidate."""
    stable = Share("main", OLD, 100 - weight, tuple(server.endpoint for server in servers[:old]))
    candidate = Share(NEW, NEW, weight, tuple(server.endpoint for server in servers[3:]))
    shares = (candidate, stable) if promoted else (stable, candidate)
    return TrafficPlan((Route(model, shares, affinity=affinity),), stable.endpoints)


async def by_http(
    gateway: RunningGateway, ids: Sequence[str | None], header: str = "x-camera", form: str = "{}", model: str = "coins"
) -> list[Place]:
    def ask() -> list[Place]:
        connection, found = http.client.HTTPConnection(gateway.authority, timeout=HANG_S), []
        for each in ids:
            headers = {} if each is None else {header: form.format(each)}
            connection.request("POST", f"/v2/models/{model}/infer", b"{}", headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            found.append(Place(answer.headers["x-segserve-group"], answer.headers["x-segserve-server"]))
        connection.close()
        return found

    return await asyncio.to_thread(ask)


async def by_grpc(gateway: RunningGateway, ids: Sequence[str]) -> list[Place]:
    found = []
    async with grpc.aio.insecure_channel(gateway.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for each in ids:
            call = stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=(("x-camera", each),))
            said = dict(await call.initial_metadata())
            await call
            found.append(Place(said["x-segserve-group"], said["x-segserve-server"]))
    return found


def on_candidate(places: Sequence[Place]) -> set[str]:
    return {each for each, place in zip(IDS, places, strict=True) if place.group == NEW}


async def test_nobody_who_is_on_the_candidate_goes_back_while_its_weight_only_grows(
    gateway: RunningGateway, servers: list[StubTriton]
) -> None:
    """Also when it is promoted, and the former revision keeps some requests for comparison."""
    former, server = set[str](), dict[tuple[str, str], str]()
    for weight, promoted in [(5, False), (25, False), (50, False), (95, True), (100, True)]:
        await gateway.traffic.apply(plan(servers, weight, promoted=promoted))
        places = await by_http(gateway, IDS)
        chosen = on_candidate(places)

        assert former <= chosen
        assert abs(len(chosen) / len(IDS) - weight / 100) < 0.06  # three deviations at 50 %
        for each, place in zip(IDS, places, strict=True):
            assert server.setdefault((each, place.group), place.server) == place.server
        former = chosen


async def test_both_protocols_send_an_id_to_the_same_server(gateway: RunningGateway, servers: list[StubTriton]) -> None:
    await gateway.traffic.apply(plan(servers, 25))

    assert await by_grpc(gateway, IDS[:200]) == await by_http(gateway, IDS[:200])


async def test_a_server_that_leaves_moves_only_its_own_ids_and_comes_back_to_them(
    gateway: RunningGateway, servers: list[StubTriton]
) -> None:
    await gateway.traffic.apply(plan(servers, 0))
    before = await by_http(gateway, IDS)
    await gateway.traffic.apply(plan(servers, 0, old=2))
    without = await by_http(gateway, IDS)
    await gateway.traffic.apply(plan(servers, 0))

    left = {place.server for place in without}
    stayed = [(one, other) for one, other in zip(before, without, strict=True) if one.server in left]
    assert min(Counter(place.server for place in before).values()) > 150
    assert sum(one != other for one, other in stayed) <= 2  # a table of 65,537 places is filled anew
    assert await by_http(gateway, IDS) == before


async def test_each_rollout_and_each_model_begins_with_other_ids_and_servers_stay(
    gateway: RunningGateway, servers: list[StubTriton]
) -> None:
    found = []
    for affinity in (FIRST, replace(FIRST, salt="coins-000002")):
        await gateway.traffic.apply(plan(servers, 10, affinity=affinity))
        found.append(await by_http(gateway, IDS))
    await gateway.traffic.apply(plan(servers, 10, model="cells"))
    found.append(await by_http(gateway, IDS, model="cells"))

    first, second, other = (on_candidate(places) for places in found)
    assert len(first & second) < len(first) / 2
    assert len(first & other) < len(first) / 2
    assert all(one == other for one, other in zip(*found[:2], strict=True) if one.group == other.group)


async def test_requests_without_an_id_are_split_at_random(gateway: RunningGateway, servers: list[StubTriton]) -> None:
    await gateway.traffic.apply(plan(servers, 25))

    places = await by_http(gateway, [None] * 1800)

    # Six deviations: nothing here repeats itself.
    assert abs(Counter(place.group for place in places)[NEW] / 1800 - 0.25) < 0.06
    assert len({place.server for place in places}) == 5


async def test_a_stream_comes_before_the_header_and_the_header_before_the_cookie(
    gateway: RunningGateway, servers: list[StubTriton]
) -> None:
    await gateway.traffic.apply(plan(servers, 50))

    for header, form in (("x-sequence-id", "{}"), ("cookie", "other=1; visitor={}; last=2")):
        once, again = [await by_http(gateway, IDS[:100], header, form) for _ in range(2)]
        assert once == again
        assert len({place.server for place in once}) == 5


async def test_a_long_cookie_that_names_nothing_does_not_stop_the_gateway(
    gateway: RunningGateway, servers: list[StubTriton]
) -> None:
    """A script that went over it anew from each of its bytes stopped all callers for 72 seconds."""
    await gateway.traffic.apply(plan(servers, 50))

    async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=30.0) as client:
        hostile = client.post("/v2/models/coins/infer", headers={"cookie": 56_000 * "a"})
        answers = await asyncio.gather(hostile, client.post("/v2/models/coins/infer"))

    assert [answer.status_code for answer in answers] == [200, 200]


async def test_what_callers_send_as_the_gateways_own_headers_chooses_nothing(
    gateway: RunningGateway, servers: list[StubTriton]
) -> None:
    await gateway.traffic.apply(plan(servers, 50))

    for header in ("x-segserve-part", "x-segserve-id"):
        assert len(set(await by_http(gateway, ["7"] * 100, header))) == 5
