"""A server that is gone without a word, as with its node's power: no packet is acknowledged, no connection closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes.gateway import RunningGateway
from fakes.gateway_clients import Load, by_grpc, by_http
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_operator.core.traffic import Route, Share, TrafficPlan

pytestmark = pytest.mark.platform


def both(old: StubTriton, new: StubTriton) -> TrafficPlan:
    """Return a plan with one group of these two servers."""
    endpoints = (old.endpoint, new.endpoint)
    return TrafficPlan((Route("coins", (Share("main", "coins-1", 100, endpoints),)),), endpoints)


async def test_requests_that_a_lost_server_had_received_are_answered_by_another(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(both(old, new))
    for server in (old, new):
        server.hold()
    asks = (by_http, by_grpc) * 12
    threads = ThreadPoolExecutor(len(asks))
    calls = [threads.submit(ask, gateway.authority) for ask in asks]

    async def all_arrived() -> bool:
        return old.in_flight + new.in_flight == len(calls)

    await eventually(all_arrived, "both servers have their requests")
    assert old.in_flight
    old.lose()
    new.release()

    assert Counter(await asyncio.gather(*map(asyncio.wrap_future, calls))) == {"new": len(calls)}


async def test_requests_that_are_sent_to_a_lost_server_over_open_connections_are_answered_by_another(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    old.delay_s = new.delay_s = 0.005
    await gateway.traffic.apply(both(old, new))
    load = Load(gateway, clients=8)

    async with load:
        await load.hears("old", "new")
        old.lose()
        answered = load.answers["old"]
        await load.goes_on(500)

    assert load.failures == []
    assert load.answers["old"] - answered <= len(load)  # those that were under way
