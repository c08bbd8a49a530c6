"""What a caller can provoke alone is never evidence against the revision that his requests meet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.gateway_clients import LIMIT
from fakes.guarded_gateway import Guarded, guarded_gateway
from fakes.hostile_caller import INFER, connected, head, reply
from fakes.waiting import until
from segserve_operator.adapters.traffic.envoy_counts import FAULTS
from segserve_operator.adapters.traffic.envoy_listener import CallerTimeouts
from segserve_operator.api.session_affinity import SessionAffinity

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TRITON_HEADERS = 8192
UNREAD = b'{"error":"failed to parse the request JSON buffer"}'
MESSAGE = pb.ModelInferRequest(model_name="coins").SerializeToString()
SERVER_FAULT, CALLER_FAULT = grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    affinity = SessionAffinity(header="x-camera", cookie="session")
    with guarded_gateway(folder, affinity=affinity, waits=CallerTimeouts(body_s=3.0)) as running:
        yield running


@dataclass(frozen=True)
class Attack:
    """What a caller does; `attempts` of it reach a server, and `status` is what he gets, None for nothing."""

    do: Callable[[Guarded], Any]
    status: Any
    attempts: int = 0
    said: int = 200
    grpc_said: grpc.StatusCode = grpc.StatusCode.OK
    grpc_message: str = ""


def http(*headers: str, body: bytes = b"x", path: str = INFER) -> Callable[[Guarded], int | None]:
    """Send a request as it is written here, and return the status of the answer."""

    def send(gateway: Guarded) -> int | None:
        length = (
            ()
            if any(each.lower().startswith(("content-l", "transfer")) for each in headers)
            else (f"content-length: {len(body)}",)
        )
        answered = reply(gateway.port, [head(*headers, *length, "connection: close", path=path), body])
        return int(answered.split()[1]) if answered else None

    return send


def leave(sent: int) -> Callable[[Guarded], None]:
    """Send `sent` of ten bytes, and leave; of a whole request once the server has it."""

    def send(gateway: Guarded) -> None:
        gateway.triton.hold()
        with connected(gateway.port) as connection:
            connection.sendall(head("content-length: 10") + b"x" * sent)
            if sent == 10:
                until(lambda: gateway.triton.in_flight == 1, "the server has the request")
        gateway.triton.release()
        until(lambda: gateway.triton.in_flight == 0, "the server is done")

    return send


def by_grpc(
    *metadata: tuple[str, str], message: bytes = MESSAGE, deadline_s: float = 60.0, **options: Any
) -> Callable[[Guarded], grpc.StatusCode]:
    """Send a message as it is written here, and return the status that the gateway gives it."""

    def send(gateway: Guarded) -> grpc.StatusCode:
        if deadline_s < 1:
            gateway.triton.delay_s = 4 * deadline_s
        with grpc.insecure_channel(gateway.running.authority) as channel:
            call = channel.unary_unary(METHOD)
            try:
                call(message, metadata=metadata, timeout=deadline_s, **options)
            except grpc.RpcError as error:
                found: grpc.StatusCode = error.code()
                return found
            finally:
                gateway.triton.delay_s = 0.0
        return grpc.StatusCode.OK

    return send


def large(size: int) -> bytes:
    return pb.ModelInferRequest(model_name="coins", raw_input_contents=[bytes(size)]).SerializeToString()


def unreachable(do: Callable[[Guarded], Any]) -> Callable[[Guarded], Any]:
    """Do something while the server's machine answers nobody, and no former connection to it is open."""

    def send(gateway: Guarded) -> Any:
        gateway.triton.close()
        gateway.triton.open()
        gateway.triton.lose()
        try:
            return do(gateway)
        finally:
            gateway.triton.close()
            gateway.triton.open()

    return send


ATTACKS = {
    "cookies of 50 kB": Attack(http(f"cookie: {'a' * 50_000}"), 200, 1),
    "a token of 20 kB": Attack(http(f"authorization: Bearer {'a' * 20_000}"), 200, 1),
    "a request id of 9 kB": Attack(http(f"x-request-id: {'a' * 9_000}"), 431),
    "a slice of 9 kB": Attack(http(f"x-segserve-slice: {'a' * 9_000}"), 431),
    "an id of 9 kB for its revision": Attack(http(f"x-camera: {'a' * 9_000}"), 200, 1),
    "a query of 9 kB": Attack(http(path=f"{INFER}?{'a' * 9_000}"), 431),
    "headers of 70 kB": Attack(http(f"x-a: {'a' * 70_000}"), 431),
    "200 headers": Attack(http(*(f"x-{at}: a" for at in range(200))), 431),
    "a body above the limit": Attack(http(body=bytes(LIMIT + 1)), 413),
    "an encoding that nobody reads": Attack(http("content-encoding: deflate"), 415),
    "a path that there is not": Attack(http(path="/v2/models/coins/load"), 404),
    "a model that there is not": Attack(http(path="/v2/models/other/infer"), 404),
    "a chunk without a length": Attack(http("transfer-encoding: chunked", body=b"zz\r\n"), 400),
    "a body that does not end": Attack(http("content-length: 100"), 408),
    "half a body, and gone": Attack(leave(5), None),
    "a body, and gone": Attack(leave(10), None, 1),
    "a body that no server can read": Attack(http(), 400, 1, said=500),
    "a request for classes": Attack(http(body=b'{"outputs": [{"parameters": {"classification": 2}}]}'), 400),
    "metadata of 20 kB": Attack(by_grpc(("x-a", "a" * 20_000)), grpc.StatusCode.OK, 1),
    "a request id of 9 kB by gRPC": Attack(
        by_grpc(("x-request-id", "a" * 9_000)), grpc.StatusCode.RESOURCE_EXHAUSTED
    ),
    "a deadline of 50 ms": Attack(by_grpc(deadline_s=0.05), grpc.StatusCode.DEADLINE_EXCEEDED, 1),
    "a message above the limit": Attack(by_grpc(message=large(LIMIT + 1)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    "a compressed message": Attack(
        by_grpc(message=large(2**12), compression=grpc.Compression.Gzip), grpc.StatusCode.UNIMPLEMENTED
    ),
    "a message that is none": Attack(
        by_grpc(message=b"\x0a\xff\xff\xff\xff\x0f"), grpc.StatusCode.INVALID_ARGUMENT
    ),
    "a name that there is not by gRPC": Attack(
        by_grpc(message=pb.ModelInferRequest(model_name="other").SerializeToString()), grpc.StatusCode.NOT_FOUND
    ),
    "a message that no server can read": Attack(
        by_grpc(), CALLER_FAULT, 1, grpc_said=SERVER_FAULT, grpc_message="Unable to parse request"
    ),
    "a server that no connection reaches in time": Attack(unreachable(http()), 503),
    "a server that no connection of gRPC reaches in time": Attack(
        unreachable(by_grpc()), grpc.StatusCode.UNAVAILABLE
    ),
    "inputs that a server refuses": Attack(by_grpc(), CALLER_FAULT, 1, grpc_said=CALLER_FAULT),
}  # fmt: skip


async def counted(gateway: Guarded) -> tuple[int, int, int, int]:
    """Return attempts, those that failed, those that count as slow, and those in flight."""
    found = await gateway.running.traffic.count(["coins"])
    tallies = found["coins"].by_series.values() if "coins" in found else ()
    sums = [(each.attempts, each.failed, each.given_up - each.left, each.active) for each in tallies]
    attempts, failed, slow, active = map(sum, zip(*sums, strict=True)) if sums else (0, 0, 0, 0)
    return attempts, failed, slow, active


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_no_evidence(gateway: Guarded, name: str) -> None:
    attack = ATTACKS[name]
    before = asyncio.run(counted(gateway))
    gateway.triton.status, gateway.triton.grpc_status = attack.said, attack.grpc_said
    gateway.triton.grpc_message = attack.grpc_message
    gateway.triton.said = ({}, UNREAD) if attack.said != 200 else None
    gateway.triton.asked.clear()

    assert attack.do(gateway) == attack.status

    gateway.triton.status, gateway.triton.grpc_status, gateway.triton.said = 200, grpc.StatusCode.OK, None
    assert gateway.serves()
    expected = (before[0] + attack.attempts + 1, before[1], before[2], 0)
    until(lambda: asyncio.run(counted(gateway))[0] >= expected[0], "all attempts are counted")
    assert asyncio.run(counted(gateway)) == expected
    for each in gateway.triton.asked:
        sent = sum(len(name) + len(value) + 4 for name, value in each.headers.items())
        assert sent + len(each.path) < TRITON_HEADERS


@pytest.mark.parametrize("status", grpc.StatusCode, ids=lambda status: status.name)
def test_a_status_of_grpc_is_evidence_if_the_server_is_at_fault(gateway: Guarded, status: grpc.StatusCode) -> None:
    before = asyncio.run(counted(gateway))
    gateway.triton.grpc_status, gateway.triton.grpc_message = status, "the server says so"

    assert by_grpc()(gateway) is status

    gateway.triton.grpc_status = grpc.StatusCode.OK
    until(lambda: asyncio.run(counted(gateway))[0] > before[0], "the attempt is counted")
    is_fault = status.value[0] in FAULTS
    assert (asyncio.run(counted(gateway))[1] > before[1]) is is_fault


@pytest.mark.parametrize("status", [200, 201, 206, 300, *range(400, 432), 451, *range(500, 512), 599])
def test_a_status_of_http_is_evidence_from_500_on(gateway: Guarded, status: int) -> None:
    before = asyncio.run(counted(gateway))
    gateway.triton.status = status

    assert http()(gateway) == status

    gateway.triton.status = 200
    until(lambda: asyncio.run(counted(gateway))[0] > before[0], "the attempt is counted")
    assert (asyncio.run(counted(gateway))[1] > before[1]) is (status >= 500)
