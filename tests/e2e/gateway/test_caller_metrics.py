"""What the gateway counts by caller and by slice, on the real Envoy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.credentials import api_key, key_line
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import served
from fakes.mounted_secret import MountedSecret
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.traffic import envoy_telemetry
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.api.access import Auth
from segserve_operator.api.telemetry import CallerMetrics
from segserve_platform.platforms.costs import counted_callers
from segserve_platform.platforms.metrics import MetricsSnapshot, read_series

pytestmark = pytest.mark.platform

INFER = "/v2/models/coins/infer"


async def counted(gateway: RunningGateway, name: str, by: str) -> Counter[str]:
    """Return a counter's values by caller or slice, whose other labels name the model and its revision."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families((await gateway.traffic.metrics()).decode()):
        for sample in family.samples:
            if sample.name.removesuffix("_total") == f"envoy_segserve_{by}_{name}":
                assert (sample.labels["model"], sample.labels["revision"]) == ("coins", "coins-old")
                found[sample.labels[by]] += int(sample.value)
    return found


async def post(gateway: RunningGateway, *, path: str = INFER, body: bytes = b"image", **headers: str | bytes) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=HANG_S) as client:
        return (await client.post(path, content=body, headers=named)).status_code


def two_teams(folder: Path) -> AuthSettings:
    """Return the settings of a gateway with two callers."""
    keys = b"\n".join(key_line(name, "s").encode() for name in ("team-a", "team-b"))
    MountedSecret(folder / "callers", {"htpasswd": keys})
    spec = Auth.model_validate({"apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}]})
    return AuthSettings(spec, (folder,), folder / "auth")


async def test_answered_requests_are_counted_by_caller_and_by_slice(tmp_path: Path, old: StubTriton) -> None:
    async with running_gateway(
        tmp_path / "gateway", auth=two_teams(tmp_path), caller_metrics=CallerMetrics()
    ) as gateway:
        await gateway.traffic.apply(served(old))
        a, b = api_key("team-a", "s"), api_key("team-b", "s")
        for _ in range(3):
            assert await post(gateway, x_api_key=a, x_segserve_slice="camera-1") == 200
        async with grpc.aio.insecure_channel(gateway.authority) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            sent = [("x-api-key", b), ("x-segserve-slice", "camera-2")]
            await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=sent)
            old.grpc_status = grpc.StatusCode.INTERNAL
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=sent)
        assert await post(gateway, x_api_key="wrong") == 401
        assert await post(gateway, path="/v2/models/nosuch/infer", x_api_key=b) == 404
        old.status = 503
        assert await post(gateway, x_api_key=b) == 503

        assert await counted(gateway, "requests", "caller") == {"key:team-a": 3, "key:team-b": 1}
        assert await counted(gateway, "requests", "slice") == {"camera-1": 3, "camera-2": 1}
        assert (await counted(gateway, "received_bytes", "caller"))["key:team-a"] == 3 * len(b"image")
        assert (await counted(gateway, "sent_bytes", "slice"))["camera-1"] > 0
        times = await counted(gateway, "server_microseconds", "caller")
        assert min(times.values()) > 0
        shot = MetricsSnapshot(0.0, tuple(read_series((await gateway.traffic.metrics()).decode())))
        uses = counted_callers(shot, "caller")["", "coins", "coins-old"]
        assert {name: use.requests for name, use in uses.items()} == {"key:team-a": 3, "key:team-b": 1}
        assert uses["key:team-b"].server_s == times["key:team-b"] / 1e6


async def test_a_request_without_a_slice_has_its_callers_name_where_the_pool_says_so(
    tmp_path: Path, old: StubTriton
) -> None:
    settings = CallerMetrics(slice_by_caller=True)
    async with running_gateway(tmp_path / "gateway", auth=two_teams(tmp_path), caller_metrics=settings) as gateway:
        await gateway.traffic.apply(served(old))
        a, b = api_key("team-a", "s"), api_key("team-b", "s")
        assert await post(gateway, x_api_key=a) == 200
        assert await post(gateway, x_api_key=b, x_segserve_slice="camera-1") == 200

        assert [asked.headers["x-segserve-slice"] for asked in old.asked] == ["team-a", "camera-1"]
        assert await counted(gateway, "requests", "slice") == {"team-a": 1, "camera-1": 1}


async def test_labels_are_bounded_and_no_caller_can_spoil_the_text(
    tmp_path: Path, old: StubTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoy_telemetry, "MOST_CALLERS", 3)
    async with running_gateway(tmp_path, caller_metrics=CallerMetrics()) as gateway:
        await gateway.traffic.apply(served(old))
        labels = [b'a"b\\c', "caf\u00e9".encode(), b"camera.3", *(f"random-{number}".encode() for number in range(20))]
        for label in labels:
            assert await post(gateway, x_segserve_slice=label) == 200
        assert await post(gateway) == 200

        found = await counted(gateway, "requests", "slice")
        assert found == {'a"b\\c': 1, "caf??": 1, "camera.3": 1, "other": 20, "": 1}
        assert await counted(gateway, "requests", "caller") == {"": len(labels) + 1}


async def test_a_caller_who_invents_slices_leaves_half_of_the_places_to_another(
    tmp_path: Path, old: StubTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoy_telemetry, "MOST_CALLERS", 4)
    settings = CallerMetrics()
    async with running_gateway(tmp_path / "gateway", auth=two_teams(tmp_path), caller_metrics=settings) as gateway:
        await gateway.traffic.apply(served(old))
        a, b = api_key("team-a", "s"), api_key("team-b", "s")
        for number in range(20):
            assert await post(gateway, x_api_key=a, x_segserve_slice=f"random-{number}") == 200
        for _ in range(2):
            for camera in ("camera-1", "camera-2", "camera-3"):
                assert await post(gateway, x_api_key=b, x_segserve_slice=camera) == 200
            for number in (0, 1, 20):
                assert await post(gateway, x_api_key=a, x_segserve_slice=f"random-{number}") == 200

        found = await counted(gateway, "requests", "slice")
        assert {name: found[name] for name in ("camera-1", "camera-2", "random-0", "random-1")} == {
            "camera-1": 2,
            "camera-2": 2,
            "random-0": 3,
            "random-1": 3,
        }
        assert found.keys() == {"camera-1", "camera-2", *(f"random-{number}" for number in range(4)), "other"}
        assert found["other"] == 20 - 4 + 2 + 2


async def test_counters_that_no_longer_change_make_room_for_others(
    tmp_path: Path, old: StubTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of revisions that are gone would fill the gateway otherwise, until new ones are not counted."""
    monkeypatch.setattr(envoy_telemetry, "_UNCHANGED_S", 2)
    async with running_gateway(tmp_path, caller_metrics=CallerMetrics()) as gateway:
        await gateway.traffic.apply(served(old))
        for _ in range(3):
            assert await post(gateway, x_segserve_slice="camera-1") == 200

        async def expired() -> bool:
            return not await counted(gateway, "requests", "slice")

        await eventually(expired, "counters that do not change expire")

        async def is_counted_again() -> int:
            # One of them may still be counted by what expires.
            assert await post(gateway, x_segserve_slice="camera-2") == 200
            return (await counted(gateway, "requests", "slice"))["camera-2"]

        assert await eventually(is_counted_again, "others are counted then") > 0
        assert "camera-1" not in await counted(gateway, "requests", "slice")


async def test_without_the_option_nothing_is_counted_by_caller(serving: RunningGateway) -> None:
    assert await post(serving, x_segserve_slice="camera-1") == 200
    assert "segserve_slice" not in (await serving.traffic.metrics()).decode()
