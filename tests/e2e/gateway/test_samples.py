"""What Envoy counts is what callers saw, as attempts, by group and protocol."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from fakes.gateway_clients import Load, ask, by_grpc, by_http, served
from fakes.gateway_counts import GRPC, HTTP, INFER, by_grpc_status, by_http_status, counted, tally, timed
from fakes.waiting import eventually
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.rollout.counters import Series, SeriesCounts
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

if TYPE_CHECKING:
    from fakes.gateway import RunningGateway
    from fakes.triton import StubTriton

pytestmark = [pytest.mark.platform, pytest.mark.core]

NOWHERE = Endpoint("127.0.0.1", 1, 1)
CLIENTS_FAULTS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
SERVERS_FAULTS = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
)


async def test_answers_of_both_protocols_are_attempts_that_did_not_fail(serving: RunningGateway) -> None:
    for _ in range(3):
        await asyncio.to_thread(by_http, serving.authority)
        await asyncio.to_thread(by_grpc, serving.authority)

    found = (await counted(serving)).by_series

    assert set(found) == {HTTP, GRPC}
    for each in found.values():
        assert replace(each, latencies=()) == SeriesCounts(attempts=3)
        assert timed(each) == 3


async def test_only_inference_is_counted(serving: RunningGateway) -> None:
    await ask(serving, "/v2/models/coins", method="GET")
    await ask(serving, "/v2/models/coins.network/infer")
    async with httpx.AsyncClient(base_url=f"http://{serving.internal}") as client:
        assert (await client.post(INFER, headers={"x-segserve-group": "main"})).status_code == 200

    assert await serving.traffic.count(["coins"]) == {}


async def test_an_error_is_asked_again_and_both_are_failed_attempts(serving: RunningGateway, old: StubTriton) -> None:
    old.status = 500
    assert [await by_http_status(serving) for _ in range(4)] == [500] * 4

    found = await tally(serving, HTTP)

    assert (found.attempts, found.failed, found.given_up) == (8, 8, 0)
    assert len(old.asked) == 8


async def test_an_error_that_is_answered_at_the_second_time_is_seen_nevertheless(
    serving: RunningGateway, old: StubTriton
) -> None:
    old.resets = 1
    assert await by_http_status(serving) == 200

    found = await tally(serving, HTTP)

    assert (found.attempts, found.failed, found.given_up) == (2, 1, 0)


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_clients_fault_is_no_failure_of_the_server(
    serving: RunningGateway, old: StubTriton, status: int
) -> None:
    old.status = status
    assert await by_http_status(serving) == status

    found = await tally(serving, HTTP)

    assert (found.attempts, found.failed) == (1, 0)


async def test_a_body_that_triton_cannot_read_is_the_callers_fault_and_not_asked_again(
    serving: RunningGateway, old: StubTriton
) -> None:
    """Triton says 500; the gateway knows better."""
    old.status, old.name = 500, "failed to parse the request JSON buffer"
    assert await by_http_status(serving) == 400

    found = await tally(serving, HTTP)

    assert (found.attempts, found.failed) == (1, 0)
    assert len(old.asked) == 1


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the headers"])
async def test_statuses_of_grpc_tell_whose_fault_it_is(serving: RunningGateway, old: StubTriton, late: bool) -> None:
    old.late = late
    for status in (*CLIENTS_FAULTS, *SERVERS_FAULTS):
        old.grpc_status = status
        assert await by_grpc_status(serving) is status

    found = await tally(serving, GRPC)

    assert (found.attempts, found.failed) == (len(CLIENTS_FAULTS) + len(SERVERS_FAULTS), len(SERVERS_FAULTS))


async def test_an_internal_error_by_grpc_is_two_failed_attempts_where_it_is_asked_again(
    serving: RunningGateway, old: StubTriton
) -> None:
    old.grpc_status = grpc.StatusCode.INTERNAL
    assert await by_grpc_status(serving) is grpc.StatusCode.INTERNAL

    found = await tally(serving, GRPC)

    assert len(old.methods) == 2
    assert (found.attempts, found.failed, found.given_up) == (2, 2, 0)


@pytest.mark.parametrize(("endpoints", "attempts"), [((), 1), ((NOWHERE,), 2)], ids=["no server", "nobody listens"])
async def test_a_group_without_servers_fails(
    gateway: RunningGateway, endpoints: tuple[Endpoint, ...], attempts: int
) -> None:
    await gateway.traffic.apply(TrafficPlan((Route("coins", (Share("main", "coins-old", 100, endpoints),)),)))
    assert await by_http_status(gateway) == 503
    assert await by_grpc_status(gateway) is grpc.StatusCode.UNAVAILABLE

    found = (await counted(gateway)).by_series

    for series in (HTTP, GRPC):
        assert (found[series].attempts, found[series].failed, found[series].given_up) == (attempts, attempts, 0)


async def test_requests_over_the_limit_are_refused_and_no_evidence(gateway: RunningGateway, old: StubTriton) -> None:
    share = Share("main", "coins-old", 100, (old.endpoint,), max_requests=1)
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),)))
    old.hold()
    asked = [asyncio.create_task(by_http_status(gateway)) for _ in range(5)]

    async def all_but_one_ended() -> bool:
        return sum(task.done() for task in asked) == 4

    await eventually(all_but_one_ended, "four are refused")
    old.release()
    assert sorted(await asyncio.gather(*asked)) == [200, 503, 503, 503, 503]

    found = await tally(gateway, HTTP)

    assert (found.attempts, found.failed, found.given_up) == (1, 0, 0)


async def test_a_request_that_takes_too_long_has_failed_and_is_given_up(
    impatient: RunningGateway, old: StubTriton
) -> None:
    old.hold()
    assert await by_http_status(impatient) == 504
    assert await by_grpc_status(impatient) is grpc.StatusCode.DEADLINE_EXCEEDED

    found = (await counted(impatient)).by_series

    assert {series: replace(each, latencies=()) for series, each in found.items()} == {
        HTTP: SeriesCounts(1, 1, 1, 0),
        GRPC: SeriesCounts(1, 1, 1, 0),
    }
    assert not any(map(timed, found.values()))


async def test_a_caller_that_goes_away_has_given_up_and_nothing_has_failed(
    serving: RunningGateway, old: StubTriton
) -> None:
    old.hold()
    for asks in (by_http_status, by_grpc_status):
        asked = asyncio.create_task(asks(serving))
        await serving.in_flight({("coins", "main"): 1})
        asked.cancel()
        await serving.in_flight({})

    found = (await counted(serving)).by_series

    assert {series: replace(each, waited_ms=0) for series, each in found.items()} == {
        HTTP: SeriesCounts(1, 0, 1, 0, left=1),
        GRPC: SeriesCounts(1, 0, 1, 0, left=1),
    }


async def test_latencies_are_in_the_right_bins(serving: RunningGateway, old: StubTriton) -> None:
    """Each is at least what the server took and at most what the caller waited."""
    waited_ms: dict[Series, list[float]] = {HTTP: [], GRPC: []}
    for delay_s in (0.05, 0.2, 0.2):
        old.delay_s = delay_s
        for series, asks in ((HTTP, by_http_status), (GRPC, by_grpc_status)):
            began_s = time.monotonic()
            await asks(serving)
            waited_ms[series].append(1000 * (time.monotonic() - began_s))

    for series, each in (await counted(serving)).by_series.items():
        lower_ms = [lower for lower, count in each.latencies for _ in range(count)]
        assert len(lower_ms) == 3
        for took_ms, lower, waited in zip((50, 200, 200), lower_ms, sorted(waited_ms[series]), strict=True):
            assert took_ms <= lower <= waited


async def test_the_groups_of_a_split_are_counted_apart(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old, new, 30))
    load = Load(gateway, clients=4)
    async with load:
        await load.hears("old", "new")

    found = (await counted(gateway)).by_series

    by_group = {group: sum(t.attempts for s, t in found.items() if s.group == group) for group in ("main", "coins-new")}
    assert by_group == {"main": load.answers["old"], "coins-new": load.answers["new"]}
    assert all(timed(each) == each.attempts for each in found.values())


def test_envoys_bins_have_no_edges_between_those_of_looks() -> None:
    """Envoy's have two digits, and so have these."""
    assert all(float(f"{edge:.1e}") == edge for edge in EDGES_MS)
