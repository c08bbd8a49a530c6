"""The gateway's access log and the ids of requests, on the real Envoy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.credentials import api_key, key_line
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import by_grpc, served
from fakes.mounted_secret import MountedSecret
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.api.access import Auth
from segserve_operator.api.telemetry import AccessLog

pytestmark = [pytest.mark.platform, pytest.mark.core]

INFER = "/v2/models/coins/infer"
ALL, ERRORS = AccessLog(sampling_ratio=1.0), AccessLog()
CANARY = "canary-never-in-a-log"


async def lines_of(gateway: RunningGateway, *request_ids: str) -> dict[str, dict[str, Any]]:
    """Return the lines by request id, once there is one of each of these."""
    found: dict[str, dict[str, Any]] = {}

    async def written() -> bool:
        text = (gateway.folder / "access.log").read_text()
        found.update({line["request_id"]: line for line in map(json.loads, text.splitlines())})
        return found.keys() >= set(request_ids)

    await eventually(written, f"lines of {request_ids}")
    return found


async def post(gateway: RunningGateway, path: str = INFER, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=HANG_S) as client:
        return await client.post(path, content=CANARY.encode(), headers=named)


async def test_a_line_says_which_revision_answered_whom_and_how_long_it_took(tmp_path: Path, old: StubTriton) -> None:
    MountedSecret(tmp_path / "callers", {"htpasswd": key_line("team-a", "s").encode()})
    spec = Auth.model_validate({"apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}]})
    auth = AuthSettings(spec, (tmp_path,), tmp_path / "auth")
    async with running_gateway(tmp_path / "gateway", auth=auth, access_log=ALL) as gateway:
        await gateway.traffic.apply(served(old))
        key = api_key("team-a", "s")
        traced = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        answer = await post(gateway, x_request_id="order-1", x_api_key=key, x_segserve_slice="camera-3", **traced)
        refused = await post(gateway, f"{INFER}?token={CANARY}", x_request_id="order-2", x_api_key=f"{CANARY}=")
        lines = await lines_of(gateway, "order-1", "order-2")

    assert (answer.status_code, refused.status_code) == (200, 401)
    line = lines["order-1"]
    assert line["duration_ms"] >= line["server_duration_ms"] >= 0
    assert (
        line.items()
        >= {
            "caller": "key:team-a",
            "model": "coins",
            "revision": "coins-old",
            "group": "main",
            "slice": "camera-3",
            **traced,
            "method": "POST",
            "path": INFER,
            "response_code": 200,
            "bytes_received": len(CANARY),
            "bytes_sent": len(answer.content),
            "attempts": 1,
        }.items()
    )
    assert lines["order-2"]["response_code"] == 401
    assert "caller" not in lines["order-2"]
    written = (tmp_path / "gateway/access.log").read_text()
    assert CANARY not in written
    assert key not in written


async def test_errors_are_always_logged_and_the_rest_by_its_share(tmp_path: Path, old: StubTriton) -> None:
    async with running_gateway(tmp_path, access_log=ERRORS) as gateway:
        await gateway.traffic.apply(served(old))
        await post(gateway, x_request_id="good")
        await post(gateway, "/v2/models/nosuch/infer", x_request_id="unknown")
        old.status = 503
        await post(gateway, x_request_id="overloaded")
        old.grpc_status = grpc.StatusCode.INTERNAL
        async with grpc.aio.insecure_channel(gateway.authority) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=[("x-request-id", "by-grpc")])
        lines = await lines_of(gateway, "unknown", "overloaded", "by-grpc")

    assert lines.keys() == {"unknown", "overloaded", "by-grpc"}
    assert lines["unknown"].items() >= {"model": "nosuch", "response_code": 404}.items()
    assert lines["overloaded"]["response_code"] == 503
    assert lines["by-grpc"].items() >= {"model": "coins", "response_code": 200, "grpc_status": "INTERNAL"}.items()


async def test_an_id_of_any_form_comes_back_and_is_logged_in_part(tmp_path: Path, old: StubTriton) -> None:
    own = "6f1c2b0e-1111-4222-8333-444455556666"
    async with running_gateway(tmp_path, access_log=ALL) as gateway:
        await gateway.traffic.apply(served(old))
        for given in (own, "x" * 500, 'say "no"'):
            assert (await post(gateway, x_request_id=given)).headers["x-request-id"] == given
        lines = await lines_of(gateway, own, "x" * 128, 'say "no"')
        made = (await post(gateway)).headers["x-request-id"]
        assert made not in lines
        assert (await lines_of(gateway, made))[made]["model"] == "coins"


async def test_every_answer_has_an_id_also_of_the_gateway_and_by_grpc(serving: RunningGateway) -> None:
    ids = {(await post(serving, path)).headers["x-request-id"] for path in (INFER, INFER, "/nowhere", "/v2")}
    async with grpc.aio.insecure_channel(serving.authority) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(pb.ModelInferRequest(model_name="coins"))
        await call
        metadata = dict(await call.initial_metadata())

    assert len({*ids, metadata["x-request-id"]}) == 5
    assert by_grpc(serving.authority) == "old"
    assert not (serving.folder / "access.log").exists()
