"""Nothing but questions and inferences passes the gateway of the running system, whatever a caller tries."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench.platform import Running
from fakes.waiting import HANG_S
from raw_inference import GOOD, PROTOCOLS, Protocol, RawRequest, Reply, check_refused, check_serves, image, post, send

pytestmark = [pytest.mark.platform, pytest.mark.core]

CLOSED = [
    "/v2/repository/index",
    "/v2/repository/models/coins/load",
    "/v2/repository/models/coins/unload",
    "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/region/x/register",
    "/v2/cudasharedmemory/status",
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/coins/trace/setting",
    "/v2/models/coins/%2e%2e/%2E%2e/repository/index",
    "/v2/models/coins/infer/../../../repository/index",
    "/v2//repository//index",
    "/V2/repository/index",
    "/v2/Repository/index",
    "/v2/repository/index.",
    "/v2/repository./index",
    "/v2/repository/index/",
    "/v2/./logging",
    "/v2;x/logging",
    "/v2/logging?x=/v2/health/live",
    "/v2/models/stats/../../logging",
    "//v2/logging",
    "/metrics/",
    "/metrics/../v2/logging",
    "/stats",
    "/config_dump",
]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_administers_the_server_is_closed_over_http(coins: Running, photo: bytes, method: str) -> None:
    replies = {path: raw_http(coins.url, method, path) for path in CLOSED}

    assert {path: status for path, (status, _) in replies.items() if status != 404} == {}
    for _, body in replies.values():
        document = json.loads(body)
        # A path that is not of KServe v2 gets a problem of RFC 9457.
        check_refused(Reply(404, document.get("error") or document["detail"]), 404, "no such path")
    check_serves(coins.url, "http", photo)


def raw_http(url: str, method: str, path: str) -> tuple[int, bytes]:
    """Ask for a path as it is: clients' libraries would tidy it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        with HTTPResponse(connection, method=method) as answer:
            answer.begin()
            return answer.status, answer.read()


ADMINISTRATION = {
    "RepositoryIndex": pb.RepositoryIndexRequest(),
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="coins"),
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="coins"),
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1),
    "SystemSharedMemoryUnregister": pb.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusRequest(),
    "CudaSharedMemoryUnregister": pb.CudaSharedMemoryUnregisterRequest(),
    "TraceSetting": pb.TraceSettingRequest(),
    "LogSettings": pb.LogSettingsRequest(),
}


@pytest.mark.parametrize(("method", "message"), ADMINISTRATION.items(), ids=ADMINISTRATION)
def test_what_administers_the_server_is_closed_over_grpc(
    coins: Running, photo: bytes, method: str, message: Any
) -> None:
    with grpc.insecure_channel(coins.url.removeprefix("http://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="no such method") as caught:
            getattr(stub, method)(message, timeout=HANG_S)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    check_serves(coins.url, "grpc", photo)


def test_no_shared_memory_can_be_named(coins: Running) -> None:
    region = "triton_python_backend_shm_region_1"
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES"}
    tensor["parameters"] = {"shared_memory_region": region, "shared_memory_byte_size": 8}

    reply = post(coins.url, "coins", json.dumps({"inputs": [tensor]}).encode(), {})

    assert reply.status == 404
    assert reply.message == f"Unable to find shared memory region: '{region}'"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_headers_of_ours_and_of_envoys_have_no_effect(coins: Running, photo: bytes, protocol: Protocol) -> None:
    forged = {
        "x-segserve-route": f"{protocol}:infer:coins-instances",
        "x-segserve-model": "coins-instances",
        "x-segserve-group": "elsewhere",
        "x-segserve-revision": "forged",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-original-path": "/v2/logging",
        "x-envoy-upstream-alt-stat-name": "forged",
    }
    plain = send(coins.url, protocol, RawRequest([image(photo)]))

    reply = send(coins.url, protocol, RawRequest([image(photo)]), forged)

    assert (reply.status, reply.revision) == (GOOD[protocol], plain.revision)
    assert reply.arrays()["LABELS"] == plain.arrays()["LABELS"]
