"""The gateway as clients see it: the real Envoy in front of stand-ins for Triton."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
from collections import Counter
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from fakes.gateway import RunningGateway, running_gateway
from fakes.triton import StubTriton
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_files import GatewayRefusedError
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.platform

LIMIT = 2**21
STEP = "segserve--pre--3f9a"
NOWHERE = Endpoint("127.0.0.1", 1, 1)  # nothing listens on port 1


@pytest.fixture
def old() -> Iterator[StubTriton]:
    with StubTriton("old") as triton:
        yield triton


@pytest.fixture
def new() -> Iterator[StubTriton]:
    with StubTriton("new") as triton:
        yield triton


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, timeout_s=1.0, max_request_bytes=LIMIT) as running:
        yield running


def served(old: StubTriton, new: StubTriton | None = None, new_weight: int = 0, model: str = "coins") -> TrafficPlan:
    shares = [Share("main", "coins-old", 100 - new_weight, (old.endpoint,))]
    if new is not None:
        shares.append(Share("coins-new", "coins-new", new_weight, (new.endpoint,)))
    return TrafficPlan((Route(model, tuple(shares), steps=(STEP,), exposed=(f"{model}.network",)),), (old.endpoint,))


@pytest.fixture
async def serving(gateway: RunningGateway, old: StubTriton) -> RunningGateway:
    """A gateway whose one model, `coins`, the server `old` answers."""
    await gateway.traffic.apply(served(old))
    return gateway


def image(client: Any, size: int = 8) -> list[Any]:
    tensor = client.InferInput("IMAGE", [size], "UINT8")
    tensor.set_data_from_numpy(np.zeros(size, np.uint8))
    return [tensor]


def by_http(authority: str, model: str = "coins", size: int = 8) -> str:
    with tritonclient.http.InferenceServerClient(authority) as client:
        answer: str = client.infer(model, image(tritonclient.http, size)).get_response()["model_version"]
        return answer


def by_grpc(authority: str, model: str = "coins", size: int = 8, **options: Any) -> str:
    with tritonclient.grpc.InferenceServerClient(authority) as client:
        answer: str = client.infer(model, image(tritonclient.grpc, size), **options).get_response().model_version
        return answer


def by_stream(authority: str, model: str = "coins") -> str:
    answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(authority) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, image(tritonclient.grpc))
        result, error = answers.get(timeout=10)
        client.stop_stream()
    if error is not None:
        raise error
    answer: str = result.get_response().model_version
    return answer


CALLS = [by_http, by_grpc, by_stream]


async def ask(gateway: RunningGateway, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=20) as client:
        return await client.request(options.pop("method", "POST"), path, **options)


@pytest.mark.parametrize("call", CALLS)
async def test_plain_clients_are_answered_without_any_header(serving: RunningGateway, call: Any) -> None:
    assert await asyncio.to_thread(call, serving.authority) == "old"


async def test_requests_are_split_by_weight(gateway: RunningGateway, old: StubTriton, new: StubTriton) -> None:
    await gateway.traffic.apply(served(old, new, 30))

    def count() -> Counter[str]:
        with tritonclient.grpc.InferenceServerClient(gateway.authority) as client:
            tensors = image(tritonclient.grpc)
            return Counter(client.infer("coins", tensors).get_response().model_version for _ in range(300))

    answered = await asyncio.to_thread(count)

    assert 50 < answered["new"] < 140  # 90 expected; five standard deviations are 40


async def test_the_answer_names_its_revision_and_group(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old, new, 100))

    headers = (await ask(gateway, "/v2/models/coins/infer")).headers
    async with grpc.aio.insecure_channel(gateway.authority) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(pb.ModelInferRequest(model_name="coins"))
        metadata = dict(await call.initial_metadata())

    told = {"x-segserve-revision": "coins-new", "x-segserve-group": "coins-new"}
    assert {key: headers[key] for key in told} == told
    assert {key: metadata[key] for key in told} == told


async def test_headers_of_ours_and_of_envoys_are_stripped_from_what_clients_send(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old, new, 0))
    forged = {
        "X-Segserve-Route": "http:infer:other",
        "x-segserve-group": "coins-new",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
    }

    answer = await ask(gateway, "/v2/models/coins/infer", headers=forged)

    assert answer.json()["model_version"] == "old"
    assert not [name for name in old.asked[-1].headers if name.startswith(("x-envoy-", "x-segserve-"))]


async def test_questions_about_model_steps_and_server_are_answered(serving: RunningGateway) -> None:
    def answers() -> list[Any]:
        with tritonclient.grpc.InferenceServerClient(serving.authority) as client:
            return [
                client.is_server_live(),
                client.is_server_ready(),
                client.get_server_metadata().name,
                client.is_model_ready("coins"),
                client.get_model_metadata("coins").platform,
                client.get_model_config("coins").config.name,
                client.get_model_config(STEP).config.name,
                client.get_inference_statistics().ByteSize(),
                client.get_inference_statistics("coins").ByteSize(),
            ]

    paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", f"/v2/models/{STEP}/config"]
    paths += [f"/v2/models/coins{rest}" for rest in ("", "/ready", "/config", "/stats", "/versions/1/ready")]

    assert await asyncio.to_thread(answers) == [True, True, "old", True, "old", "coins", STEP, 0, 0]
    assert [(await ask(serving, path, method="GET")).status_code for path in paths] == [200] * len(paths)


async def test_an_exposed_network_is_answered_and_a_step_is_not(serving: RunningGateway) -> None:
    assert await asyncio.to_thread(by_grpc, serving.authority, "coins.network") == "old"
    assert (await ask(serving, "/v2/models/coins.network/infer")).status_code == 200
    assert (await ask(serving, f"/v2/models/{STEP}/infer")).status_code == 404
    assert (await ask(serving, "/v2/models/segserve--pre--other/config", method="GET")).status_code == 404
    with pytest.raises(InferenceServerException, match="unknown model"):
        await asyncio.to_thread(by_grpc, serving.authority, STEP)


@pytest.mark.parametrize("call", [by_grpc, by_stream])
@pytest.mark.parametrize(("name", "shown"), [("nope", "nope"), ("", ""), ('a"b\n%s', "a?b??s")])
async def test_an_unknown_model_is_not_found_by_grpc(serving: RunningGateway, call: Any, name: str, shown: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await asyncio.to_thread(call, serving.authority, name)

    assert caught.value.message().strip() == f"unknown model '{shown}'"
    assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_an_unknown_model_is_404_in_json_by_http(serving: RunningGateway) -> None:
    answers = [await ask(serving, f"/v2/models/{name}/infer") for name in ("nope", 'a"b')]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == {"error": "unknown model 'nope'"}
    assert answers[1].json() == {"error": "unknown model 'a?22b'"}


CLOSED_PATHS = [
    "/",
    "/metrics",
    "/v2/repository/index",
    "/v2/repository/models/coins/load",
    "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/status",
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/coins/trace/setting",
    "/v2/models/coins/versions/1/trace/setting",
    "/v2/models/coins/generate",
    "/v2/models/coins/../../repository/index",
    "/v2/models/coins/%2e%2e/%2E%2e/repository/index",
    "/v2/models/coins/infer/../../../repository/index",
    "/v2//repository//index",
    "/v2%2frepository%2Findex",
    "/V2/repository/index",
    "/V2/models/coins/infer",
    "/v2/models/coins/infer.",
    "/v2/models/coins/infer/",
    "/v2/models/coins/infer%2f",
    "/v2/models/coins./infer",
    "/v2/models/coins/infer;/../x",
    "/inference.GRPCInferenceService/RepositoryIndex",
]


async def test_every_other_path_is_404_and_reaches_no_server(serving: RunningGateway, old: StubTriton) -> None:
    answers = [await asyncio.to_thread(_raw, serving.gateway.port, path) for path in CLOSED_PATHS]

    assert [path for path, (status, _) in zip(CLOSED_PATHS, answers, strict=True) if status != 404] == []
    assert all(json.loads(body)["error"].startswith(("no such path", "unknown model")) for _, body in answers)
    assert not old.asked


def _raw(port: int, path: str) -> tuple[int, bytes]:
    """Ask for a path as it is: clients' libraries would tidy it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode())
        with HTTPResponse(connection, method="POST") as answer:
            answer.begin()
            return answer.status, answer.read()


@pytest.mark.parametrize(
    "method",
    [
        "get_model_repository_index",
        "get_log_settings",
        "get_trace_settings",
        "get_system_shared_memory_status",
        "get_cuda_shared_memory_status",
    ],
)
async def test_every_other_grpc_method_is_unimplemented(serving: RunningGateway, old: StubTriton, method: str) -> None:
    def call() -> None:
        with tritonclient.grpc.InferenceServerClient(serving.authority) as client:
            getattr(client, method)()

    with pytest.raises(InferenceServerException, match="no such method") as caught:
        await asyncio.to_thread(call)

    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert not old.methods


async def in_chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 2**16):
        yield bytes(min(2**16, size - start))


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_too_large_http_body_is_413_and_is_not_held(
    serving: RunningGateway, old: StubTriton, announced: bool
) -> None:
    before = serving.rss_mib
    content = bytes(32 * LIMIT) if announced else in_chunks(LIMIT + 1000)

    answer = await ask(serving, "/v2/models/coins/infer", content=content)

    assert answer.status_code == 413
    assert answer.json() == {"error": f"the request is too large; at most {LIMIT} bytes are allowed"}
    assert serving.rss_mib - before < 20
    assert not old.asked


async def test_a_chunked_body_without_end_is_cut_off(serving: RunningGateway, old: StubTriton) -> None:
    before = serving.rss_mib

    with pytest.raises(httpx.NetworkError):
        await ask(serving, "/v2/models/coins/infer", content=in_chunks(2**30))

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


async def test_a_compressed_grpc_message_is_refused_with_the_reason(serving: RunningGateway) -> None:
    with pytest.raises(InferenceServerException, match="compressed gRPC messages are not supported") as caught:
        await asyncio.to_thread(by_grpc, serving.authority, size=4096, compression_algorithm="gzip")

    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("endpoints", [(), (NOWHERE,)], ids=["no server", "nobody listens"])
async def test_without_a_server_requests_are_unavailable(gateway: RunningGateway, endpoints: Any) -> None:
    share = Share("main", "coins-old", 100, endpoints)
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),), endpoints))

    answer = await ask(gateway, "/v2/models/coins/infer")
    with pytest.raises(InferenceServerException) as caught:
        await asyncio.to_thread(by_grpc, gateway.authority)

    assert answer.status_code == 503
    assert set(answer.json()) == {"error"}
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert (await ask(gateway, "/v2/health/ready", method="GET")).status_code == 503


async def test_a_request_cut_off_before_its_answer_is_asked_once_more(serving: RunningGateway, old: StubTriton) -> None:
    old.resets = 1
    assert (await ask(serving, "/v2/models/coins/infer")).status_code == 200

    old.resets = 5
    assert (await ask(serving, "/v2/models/coins/infer")).status_code == 503
    assert old.resets == 3


async def test_a_request_to_one_dead_server_is_answered_by_the_other(gateway: RunningGateway, old: StubTriton) -> None:
    share = Share("main", "coins-old", 100, (NOWHERE, old.endpoint))
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),)))

    assert [(await ask(gateway, "/v2/models/coins/infer")).status_code for _ in range(20)] == [200] * 20


async def test_a_request_that_takes_too_long_is_ended(serving: RunningGateway, old: StubTriton) -> None:
    old.delay_s = 3.0

    answer = await ask(serving, "/v2/models/coins/infer")
    with pytest.raises(InferenceServerException) as caught:
        await asyncio.to_thread(by_grpc, serving.authority)

    assert (answer.status_code, answer.json()) == (504, {"error": "upstream request timeout"})
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_a_client_that_never_ends_its_headers_is_let_go(serving: RunningGateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.gateway.port)
    writer.write(b"POST /v2/models/coins/infer HTTP/1.1\r\nhost: a\r\nx: ")

    answer = await asyncio.wait_for(reader.read(), timeout=20)

    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


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


class Load:
    """Clients of both protocols that call as fast as they are answered, until it is left."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._authority = gateway.authority
        self._ended = False

    async def __aenter__(self) -> None:
        self._clients = [asyncio.create_task(client()) for client in (self._http, self._http, self._grpc, self._grpc)]
        await asyncio.sleep(0.1)

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._clients)

    async def _http(self) -> None:
        async with httpx.AsyncClient(base_url=f"http://{self._authority}", timeout=20) as client:
            while not self._ended:
                try:
                    answer = await client.post("/v2/models/coins/infer", content=b"image")
                    self.answers[answer.raise_for_status().json()["model_version"]] += 1
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    async def _grpc(self) -> None:
        async with grpc.aio.insecure_channel(self._authority) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._ended:
                try:
                    answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"))
                    self.answers[answer.model_version] += 1
                except grpc.aio.AioRpcError as error:
                    self.failures.append(repr(error))


async def test_a_request_in_flight_is_counted_and_ends_well_after_its_group_has_left_the_plan(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    old.delay_s = 0.8
    slow = [
        asyncio.create_task(ask(gateway, "/v2/models/coins/infer")),
        asyncio.create_task(asyncio.to_thread(by_grpc, gateway.authority)),
    ]
    while (await gateway.traffic.observe()).active != {("coins", "main"): 2}:
        await asyncio.sleep(0.01)

    share = Share("coins-new", "coins-new", 100, (new.endpoint,))
    await gateway.traffic.apply(TrafficPlan((Route("coins", (share,)),), (new.endpoint,)))
    meanwhile = await ask(gateway, "/v2/models/coins/infer")
    active = (await gateway.traffic.observe()).active
    answer, answer_by_grpc = await asyncio.gather(*slow)

    assert meanwhile.json()["model_version"] == "new"
    assert active == {("coins", "main"): 2}
    assert (answer.json()["model_version"], answer_by_grpc) == ("old", "old")
    assert (await gateway.traffic.observe()).active == {}


async def test_a_request_in_flight_ends_well_after_its_server_has_left_the_group(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    old.delay_s = 0.8
    slow = asyncio.create_task(ask(gateway, "/v2/models/coins/infer"))
    while not (await gateway.traffic.observe()).active:
        await asyncio.sleep(0.01)

    await gateway.traffic.apply(served(new))

    assert (await ask(gateway, "/v2/models/coins/infer")).json()["model_version"] == "new"
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
    successor = EnvoyTraffic(tmp_path, serving.gateway, timeout_s=1.0)
    assert (await successor.observe()).plan == served(old)

    await successor.apply(served(old, new, 100))

    assert (await ask(serving, "/v2/models/coins/infer")).json()["model_version"] == "new"


async def test_a_plan_that_envoy_refuses_leaves_the_one_before_in_force(
    serving: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    share = Share("coins-new", "coins-new", 100, (Endpoint("not an address", 80, 81),))

    with pytest.raises(GatewayRefusedError, match="refused"):
        await serving.traffic.apply(TrafficPlan((Route("coins", (share,)),)))

    assert (await serving.traffic.observe()).plan == served(old)
    assert (await ask(serving, "/v2/models/coins/infer")).status_code == 200
    await serving.traffic.apply(served(old, new, 100))
    assert (await ask(serving, "/v2/models/coins/infer")).json()["model_version"] == "new"
