"""Servers that leave: without a word, as with their node's power, or after they have unloaded their models."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from fakes.gateway import RunningGateway
from fakes.gateway_clients import Load, ask, by_grpc, by_http
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


UNLOADED = [
    "Request for unknown model: 'coins' has no available versions",
    "Request for unknown model: 'coins' is not found",
]
NOT_LOADED = "no server that was asked has the model loaded; try again"


def unload(server: StubTriton, message: str) -> None:
    """Have a server answer as Triton does that has no models yet, or no longer."""
    server.status, server.said = 404, ({"content-type": "text/plain"}, json.dumps({"error": message}).encode())
    server.grpc_status, server.grpc_message = grpc.StatusCode.NOT_FOUND, message


async def new_answers_for_old(gateway: RunningGateway, old: StubTriton, new: StubTriton) -> None:
    """Ask both servers, over both protocols, of which the old one answers nothing."""
    await gateway.traffic.apply(both(old, new))
    load = Load(gateway, clients=8)

    async with load:
        await load.goes_on(400)

    assert load.failures == []
    assert old.methods
    assert old.asked
    assert load.answers.keys() == {"new"}


@pytest.mark.parametrize("message", UNLOADED)
async def test_requests_to_a_server_that_has_not_loaded_the_model_are_answered_by_another(
    gateway: RunningGateway, old: StubTriton, new: StubTriton, message: str
) -> None:
    unload(old, message)
    await new_answers_for_old(gateway, old, new)


async def test_requests_that_a_server_refuses_as_it_ends_are_answered_by_another(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    # Over HTTP it closes the connections first.
    old.resets, old.grpc_status = 10**6, grpc.StatusCode.UNAVAILABLE
    old.grpc_message = "in ensemble 'coins', Server is stopping, scheduler for model 'post'"
    await new_answers_for_old(gateway, old, new)


@pytest.mark.parametrize("message", UNLOADED)
async def test_where_no_server_has_loaded_the_model_callers_are_told_to_try_again(
    gateway: RunningGateway, old: StubTriton, new: StubTriton, message: str
) -> None:
    for server in (old, new):
        unload(server, message)
    await gateway.traffic.apply(both(old, new))

    answer = await ask(gateway, "/v2/models/coins/infer", content=b"{}")
    with pytest.raises(InferenceServerException, match=NOT_LOADED) as refused:
        await asyncio.to_thread(by_grpc, gateway.authority)

    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, {"error": NOT_LOADED}, "2")
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    assert [len(server.asked) for server in (old, new)] == [1, 1]
    assert [len(server.methods) for server in (old, new)] == [1, 1]
