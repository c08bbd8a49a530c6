"""The listener for segserve's own requests, which name a group whatever its weight."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from fakes.gateway import RunningGateway
from fakes.gateway_clients import ask, by_grpc, image, served
from fakes.triton import StubTriton
from fakes.waiting import HANG_S
from segserve_operator.adapters.traffic.envoy_admin import EnvoyAdmin
from segserve_operator.core.traffic import Route, Share, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.core]

GROUP = "x-segserve-group"


@pytest.fixture
async def waiting(gateway: RunningGateway, old: StubTriton, new: StubTriton) -> RunningGateway:
    """A gateway with a candidate that no caller is sent to yet."""
    await gateway.traffic.apply(served(old, new, 0))
    return gateway


def by_http_of(authority: str, group: str, model: str = "coins") -> str:
    with tritonclient.http.InferenceServerClient(authority) as client:
        answer = client.infer(model, image(tritonclient.http), headers={GROUP: group})
        version: str = answer.get_response()["model_version"]
        return version


def by_grpc_of(authority: str, group: str, model: str = "coins") -> str:
    return by_grpc(authority, model, headers={GROUP: group})


async def post(gateway: RunningGateway, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=HANG_S) as client:
        return await client.post(f"http://{gateway.internal}{path}", headers=headers)


@pytest.mark.parametrize("call", [by_http_of, by_grpc_of])
@pytest.mark.parametrize(("group", "answers"), [("main", "old"), ("coins-new", "new")])
async def test_the_group_that_a_request_names_answers_it_whatever_its_weight(
    waiting: RunningGateway, call: Any, group: str, answers: str
) -> None:
    assert await asyncio.to_thread(call, waiting.internal, group) == answers


async def test_questions_about_a_model_reach_the_named_group(waiting: RunningGateway) -> None:
    def metadata() -> str:
        with tritonclient.grpc.InferenceServerClient(waiting.internal) as client:
            platform: str = client.get_model_metadata("coins", headers={GROUP: "coins-new"}).platform
            return platform

    assert await asyncio.to_thread(metadata) == "new"
    assert (await post(waiting, "/v2/models/coins/ready", **{GROUP: "coins-new"})).status_code == 200


@pytest.mark.parametrize(
    ("group", "model", "told"),
    [
        ("other", "coins", "no model 'coins' in a group 'other'"),
        ("main", "cells", "no model 'cells' in a group 'main'"),
        ("main/infer", "coins", "no model 'coins' in a group 'main?infer'"),
        ("", "coins", "no model 'coins' in a group ''"),
    ],
)
async def test_a_group_that_a_model_does_not_have_is_404_with_both_names(
    waiting: RunningGateway, group: str, model: str, told: str
) -> None:
    answer = await post(waiting, f"/v2/models/{model}/infer", **{GROUP: group})
    with pytest.raises(InferenceServerException) as caught:
        await asyncio.to_thread(by_grpc_of, waiting.internal, group, model)

    assert (answer.status_code, set(answer.json())) == (404, {"error"})
    assert answer.json()["error"].startswith(told)
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert caught.value.message().startswith(told)


async def test_a_request_without_a_group_is_told_what_is_missing(waiting: RunningGateway, old: StubTriton) -> None:
    answer = await post(waiting, "/v2/models/coins/infer")

    assert answer.status_code == 404
    assert "x-segserve-group names the group" in answer.json()["error"]
    assert not old.asked


@pytest.mark.parametrize("path", ["/v2", "//server/http", "/v2/repository/index", "/coins/main/infer/http"])
async def test_nothing_but_models_can_be_asked(waiting: RunningGateway, old: StubTriton, path: str) -> None:
    assert (await post(waiting, path, **{GROUP: "main"})).status_code == 404
    assert not old.asked


async def test_a_named_group_without_servers_is_unavailable(gateway: RunningGateway, old: StubTriton) -> None:
    shares = (Share("main", "coins-old", 100, (old.endpoint,)), Share("coins-new", "coins-new", 0))
    await gateway.traffic.apply(TrafficPlan((Route("coins", shares),), (old.endpoint,)))

    assert (await post(gateway, "/v2/models/coins/infer", **{GROUP: "coins-new"})).status_code == 503


async def test_what_comes_through_it_is_no_evidence(waiting: RunningGateway) -> None:
    await asyncio.to_thread(by_http_of, waiting.internal, "coins-new")
    await asyncio.to_thread(by_grpc_of, waiting.internal, "main")

    async with EnvoyAdmin(waiting.folder / "admin.sock", timeout_s=HANG_S) as admin:
        metrics = (await admin.metrics()).decode()

    counted = [line for line in metrics.splitlines() if line.startswith("envoy_cluster_upstream_rq_total{")]
    assert [line for line in counted if "/aside/" in line]
    assert not [line for line in counted if "/infer/" in line]


@pytest.mark.parametrize(
    "headers",
    [
        {GROUP: "coins-new"},
        {GROUP.upper(): "coins-new"},
        {"x-segserve-route": "coins/coins-new/aside/http"},
        {"x-segserve-route": "coins/coins-new/aside/http", GROUP: "coins-new", "x-segserve-model": "coins"},
        {"x_segserve_group": "coins-new"},
        {"connection": f"close, {GROUP}", GROUP: "coins-new"},
        {"host": "internal", GROUP: "coins-new"},
    ],
)
async def test_no_header_makes_the_public_listener_choose_a_group(
    waiting: RunningGateway, new: StubTriton, headers: dict[str, str]
) -> None:
    answer = await ask(waiting, "/v2/models/coins/infer", headers=headers)
    async with grpc.aio.insecure_channel(waiting.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        told = tuple((key.lower(), value) for key, value in headers.items() if key not in ("connection", "host"))
        answer_by_grpc = await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=told)

    assert answer.json()["model_version"] == answer_by_grpc.model_version == "old"
    assert not new.asked
    assert not new.methods


@pytest.mark.parametrize("name", ["coins/coins-new/aside/grpc", "coins/coins-new", "/coins/coins-new"])
async def test_no_model_name_makes_the_public_listener_choose_a_group(
    waiting: RunningGateway, new: StubTriton, name: str
) -> None:
    with pytest.raises(InferenceServerException, match="unknown model"):
        await asyncio.to_thread(by_grpc, waiting.authority, name)
    assert not new.methods


async def test_servers_do_not_see_what_segserve_writes_for_itself(waiting: RunningGateway, new: StubTriton) -> None:
    await post(waiting, "/v2/models/coins/infer", **{GROUP: "coins-new", "x-envoy-retry-on": "5xx"})

    assert not [name for name in new.asked[-1].headers if name.startswith(("x-envoy-", "x-segserve-"))]
