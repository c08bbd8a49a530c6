"""Who answers a request at the gateway, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from http.client import HTTPResponse
from typing import Any

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from fakes.gateway import RunningGateway
from fakes.gateway_clients import STEP, ask, by_grpc, by_http, image, served
from fakes.triton import StubTriton
from fakes.waiting import HANG_S

pytestmark = [pytest.mark.platform, pytest.mark.core]


@pytest.mark.parametrize("call", [by_http, by_grpc])
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
        "x-segserve-caller": "key:team-a",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
    }

    answer = await ask(gateway, "/v2/models/coins/infer", headers=forged)

    assert answer.json()["model_version"] == "old"
    arrived = old.asked[-1].headers.items()
    ours = {name: value for name, value in arrived if name.startswith(("x-envoy-", "x-segserve-"))}
    assert ours == {"x-segserve-caller": ""}  # nobody that the gateway knows


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


@pytest.mark.parametrize(("name", "shown"), [("nope", "nope"), ("", ""), ('a"b\n%s', "a?b??s")])
async def test_an_unknown_model_is_not_found_by_grpc(serving: RunningGateway, name: str, shown: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await asyncio.to_thread(by_grpc, serving.authority, name)

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
    "/V2/repository/index",
    "/V2/models/coins/infer",
    "/v2/models/coins/infer.",
    "/v2/models/coins/infer/",
    "/v2/models/coins./infer",
    "/v2/models/coins/infer;/../x",
    "/inference.GRPCInferenceService/RepositoryIndex",
    "/v2/models/streets/../coins/infer",
    "/v2/models/streets/%2e%2e/coins/infer",
    "/v2/models/./coins/infer",
    "/v2/models/c%6Fins/infer",
]
ESCAPED_SLASHES = [
    "/v2%2frepository%2Findex",
    "/v2/models/coins/infer%2f",
    "/v2/models/coins%2Finfer",
    "/v2/models/streets%2F..%2Fcoins/infer",
    "/v2/models/streets%5c..%5Ccoins/infer",
    "/v2/models%2Fcoins/infer",
]


async def test_every_other_path_is_404_and_reaches_no_server(serving: RunningGateway, old: StubTriton) -> None:
    answers = [await asyncio.to_thread(_raw, serving.gateway.port, path) for path in CLOSED_PATHS]

    assert [path for path, (status, _) in zip(CLOSED_PATHS, answers, strict=True) if status != 404] == []
    assert all(json.loads(body)["error"].startswith(("no such path", "unknown model")) for _, body in answers)
    assert not old.asked


async def test_a_path_with_an_escaped_slash_is_refused_and_reaches_no_model(
    serving: RunningGateway, old: StubTriton
) -> None:
    answers = [await asyncio.to_thread(_raw, serving.gateway.port, path) for path in ESCAPED_SLASHES]

    refusal = {"error": "bad request: a path must not contain an escaped slash (%2F or %5C)"}
    assert {path: status for path, (status, _) in zip(ESCAPED_SLASHES, answers, strict=True) if status != 400} == {}
    assert [json.loads(body) for _, body in answers] == [refusal] * len(answers)
    assert not old.asked


def _raw(port: int, path: str) -> tuple[int, bytes]:
    """Ask for a path as it is: clients' libraries would tidy it."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode())
        with HTTPResponse(connection, method="POST") as answer:
            answer.begin()
            return answer.status, answer.read()
