"""Large, slow and failing: what the gateway does about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import LIMIT, Load, ask, by_grpc, by_http, served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_common.kserve import HEADER_LENGTH
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

pytestmark = pytest.mark.platform

NOWHERE = Endpoint("127.0.0.1", 1, 1)  # nothing listens on port 1
EJECTED = 'envoy_cluster_outlier_detection_ejections_active{envoy_cluster_name="coins/main/infer/http"} 1'


async def in_chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 2**16):
        yield bytes(min(2**16, size - start))


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_too_large_http_body_is_413_and_is_not_held(
    serving: RunningGateway, old: StubTriton, announced: bool
) -> None:
    before = serving.rss_mib
    content = bytes(LIMIT + 1000) if announced else in_chunks(LIMIT + 1000)

    answer = await ask(serving, "/v2/models/coins/infer", content=content)

    assert answer.status_code == 413
    assert answer.json() == {"error": f"the request is too large; at most {LIMIT} bytes are allowed"}
    assert serving.rss_mib - before < 20
    assert not old.asked


async def test_a_too_large_grpc_message_is_resource_exhausted_and_is_not_held(serving: RunningGateway) -> None:
    before = serving.rss_mib

    with pytest.raises(InferenceServerException, match=f"too large; at most {LIMIT} bytes") as caught:
        await asyncio.to_thread(by_grpc, serving.authority, size=64 * 2**20)

    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert serving.rss_mib - before < 20


@pytest.mark.parametrize("call", [by_http, by_grpc])
async def test_a_body_just_under_the_limit_passes(serving: RunningGateway, call: Any) -> None:
    assert await asyncio.to_thread(call, serving.authority, size=LIMIT - 2000) == "old"


async def test_a_chunked_body_under_the_limit_passes_whole(serving: RunningGateway, old: StubTriton) -> None:
    assert (await ask(serving, "/v2/models/coins/infer", content=in_chunks(500_000))).status_code == 200
    assert old.asked[-1].body_bytes == 500_000


@pytest.mark.parametrize("endpoints", [(), (NOWHERE,)], ids=["no server", "nobody listens"])
async def test_without_a_server_requests_are_unavailable(gateway: RunningGateway, endpoints: Any) -> None:
    share = Share("main", "coins-old", 100, endpoints, restart_s=7)
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),), endpoints))

    answer = await ask(gateway, "/v2/models/coins/infer")
    with pytest.raises(InferenceServerException) as caught:
        await asyncio.to_thread(by_grpc, gateway.authority)

    assert answer.status_code == 503
    assert set(answer.json()) == {"error"}
    assert answer.headers["retry-after"] == "7"  # the revision's own time
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    health = await ask(gateway, "/v2/health/ready", method="GET")
    assert (health.status_code, health.headers["retry-after"]) == (503, "2")


@pytest.mark.parametrize("size", [0, 2_000_000], ids=["small", "a photograph"])
async def test_a_request_cut_off_before_its_answer_is_asked_once_more(
    serving: RunningGateway, old: StubTriton, size: int
) -> None:
    request = binary(size) if size else {"content": b""}
    old.resets = 1
    assert (await ask(serving, "/v2/models/coins/infer", **request)).status_code == 200
    assert [asked.body_bytes for asked in old.asked] == [size, size]

    old.resets = 5
    refused = await ask(serving, "/v2/models/coins/infer", **request)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert old.resets == 3


def binary(size: int) -> dict[str, Any]:
    """Return a request of so many bytes, all but two of which are a tensor's: as JSON it would be refused."""
    return {"content": b"{}" + bytes(size - 2), "headers": {HEADER_LENGTH: "2"}}


@pytest.mark.parametrize("size", [2**20, 2**25], ids=["kept", "too large to be kept"])
async def test_a_server_that_is_lost_while_a_request_arrives_is_503(tmp_path: Path, size: int) -> None:
    """A client that sends while the gateway answers may see a closed connection instead."""

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.transport.abort()

    server = await asyncio.start_server(leave, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    endpoint = Endpoint("127.0.0.1", port, 1)
    plan = TrafficPlan((Route("coins", (Share("main", "coins-old", 100, (endpoint,)),)),))
    async with server, running_gateway(tmp_path, max_request_bytes=2**26) as gateway:
        await gateway.traffic.apply(plan)

        asks = [ask(gateway, "/v2/models/coins/infer", **binary(size)) for _ in range(5)]
        answers = await asyncio.gather(*asks, return_exceptions=True)

    statuses = {answer.status_code for answer in answers if isinstance(answer, httpx.Response)}
    others = [answer for answer in answers if not isinstance(answer, httpx.Response | httpx.NetworkError)]
    assert (statuses - {503}, others) == (set(), [])
    assert statuses or size > 2**23


async def test_of_a_larger_request_the_gateway_holds_no_more_than_it_would_send_again(
    tmp_path: Path, old: StubTriton
) -> None:
    async with running_gateway(tmp_path, max_request_bytes=2**26) as gateway:
        await gateway.traffic.apply(served(old))
        old.hold()
        large = asyncio.create_task(ask(gateway, "/v2/models/coins/infer", **binary(2**26 - 1)))

        async def has_arrived() -> bool:
            return old.in_flight == 1

        await eventually(has_arrived, "the server has the request")
        await gateway.latencies_are_merged()
        (held,) = (line for line in await gateway.metrics() if line.startswith("envoy_server_memory_allocated{"))
        old.release()

        assert (await large).status_code == 200
        assert int(held.split()[1]) < 24 * 2**20


async def test_eight_clients_do_not_notice_that_one_of_two_servers_is_dead(
    gateway: RunningGateway, old: StubTriton
) -> None:
    share = Share("main", "coins-old", 100, (NOWHERE, old.endpoint))
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),)))
    load = Load(gateway, clients=8)

    async with load:
        await load.goes_on(400)

    assert load.failures == []
    assert load.answers["old"] > 0


async def test_all_that_a_dying_server_had_in_flight_is_answered_by_the_other(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    share = Share("main", "coins-old", 100, (old.endpoint, new.endpoint))
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),)))
    old.resets = 1000

    # Fewer than the 64 retries that a group may have in flight: all of them may meet the dying server first.
    answers = await asyncio.gather(*(ask(gateway, "/v2/models/coins/infer") for _ in range(60)))

    assert [answer.status_code for answer in answers] == [200] * 60
    assert old.resets < 1000


async def test_a_server_that_hangs_is_left_out_after_three_requests(
    tmp_path: Path, old: StubTriton, new: StubTriton
) -> None:
    share = Share("main", "coins-old", 100, (old.endpoint, new.endpoint))

    def ask_together(gateway: RunningGateway) -> Awaitable[list[httpx.Response]]:
        return asyncio.gather(*(ask(gateway, "/v2/models/coins/infer") for _ in range(20)))

    # The server that answers must do so in time, too, on a machine that is busy with something else.
    async with running_gateway(tmp_path, timeout_s=10.0) as gateway:
        await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),)))
        old.hold()

        async def is_left_out() -> bool:
            """Tell whether 20 requests all come to the other one: after some seconds, it is asked again."""
            before = len(old.asked), len(new.asked)
            await ask_together(gateway)
            came = len(old.asked) - before[0], len(new.asked) - before[1]
            return EJECTED in await gateway.metrics() and came == (0, 20)

        together = await ask_together(gateway)

        assert {answer.status_code for answer in together} == {200, 504}
        await eventually(is_left_out, "the server is left out")


async def test_an_error_of_a_server_is_asked_again_of_another_and_does_not_leave_it_out(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    """A server whose step has died answers so, until its agent has seen it."""
    share = Share("main", "coins-old", 100, (old.endpoint, new.endpoint))
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),)))
    old.status = 500

    answers = [(await ask(gateway, "/v2/models/coins/infer")).status_code for _ in range(60)]

    assert set(answers) == {200}
    assert len(old.asked) > 10
