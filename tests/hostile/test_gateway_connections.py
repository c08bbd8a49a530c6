"""Connections that want to keep the gateway from others, by silence, slowness, resets or memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from fakes.guarded_gateway import Guarded, guarded_gateway
from fakes.hostile_caller import INFER, Http2Caller, answer, connected, head
from fakes.waiting import HANG_S, until
from segserve_operator.adapters.traffic import envoy_overload
from segserve_operator.adapters.traffic.envoy_listener import CallerTimeouts
from segserve_operator.adapters.traffic.envoy_routes import GROUP_HEADER

pytestmark = pytest.mark.platform

GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC_HEADERS = (("content-type", "application/grpc"), ("te", "trailers"))
HEAP_BYTES = 2**27
MEBIBYTES = 30
# Of a gRPC message of 31 MiB; any bytes are the beginning of another body.
MESSAGE_HEAD = b"\0" + (31 * 2**20).to_bytes(4, "big") + b"\x0a\x05coins\x3a\x80\x80\x80\x0f"
RESETS = "envoy_envoy_overload_actions_reset_high_memory_stream_count"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with guarded_gateway(folder) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A gateway that a caller who means well, on a busy machine, may not be quick enough for."""
    waits = CallerTimeouts(headers_s=0.5, body_s=1.0, idle_s=0.5)
    with guarded_gateway(tmp_path_factory.mktemp("impatient"), waits=waits) as running:
        yield running


def test_a_silent_connection_is_closed(impatient: Guarded) -> None:
    with connected(impatient.port) as connection:
        assert answer(connection) == b""


def test_headers_without_end_are_answered_and_closed(impatient: Guarded) -> None:
    with connected(impatient.port) as connection:
        connection.sendall(head().removesuffix(b"\r\n") + b"x: ")

        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_is_answered_and_closed(impatient: Guarded) -> None:
    with connected(impatient.port) as connection:
        connection.sendall(head("content-length: 100000"))
        connection.settimeout(0.05)
        received = b""
        while not received:
            connection.sendall(b"x")
            try:
                received = connection.recv(65536)
            except TimeoutError:
                continue

    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"the request did not arrive in time" in received


def test_a_hundred_thousand_resets_end_one_connection_and_no_other(gateway: Guarded) -> None:
    state = H2Connection(H2Configuration(client_side=True))
    state.initiate_connection()
    with connected(gateway.port) as connection:
        sent = 0
        try:
            while sent < 100_000:
                number = state.get_next_available_stream_id()
                pseudo = [(":method", "POST"), (":path", INFER), (":scheme", "http"), (":authority", "a")]
                state.send_headers(number, pseudo)
                state.reset_stream(number)
                connection.sendall(state.data_to_send())
                sent += 1
        except ConnectionError:
            pass

    assert sent < 10_000
    assert gateway.serves()


def is_let_in(connection: socket.socket) -> bool:
    """Tell whether a new connection is answered on."""
    try:
        connection.sendall(head("content-length: 1") + b"x")
        return connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


def is_served(gateway: Guarded) -> bool:
    with connected(gateway.port) as connection:
        return is_let_in(connection)


def test_whoever_takes_all_connections_shuts_out_callers_but_not_segserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Envoy cannot tell callers apart before it accepts them: the limit is of all, and what manages it is exempt."""
    monkeypatch.setattr(envoy_overload, "MAX_CONNECTIONS", 8)
    with guarded_gateway(tmp_path) as gateway, ExitStack() as stack:
        held = [stack.enter_context(connected(gateway.port)) for _ in range(8)]
        assert all(map(is_let_in, held))

        with connected(gateway.port) as further:
            assert not is_let_in(further)
        assert asyncio.run(gateway.running.metrics())
        internal = httpx.post(
            f"http://{gateway.running.internal}{INFER}", content=b"x", headers={GROUP_HEADER: "main"}, timeout=HANG_S
        )
        assert internal.status_code == 200

        held.pop().close()
        until(lambda: is_served(gateway), "a connection that ends makes room")


def resets_of(gateway: Guarded) -> list[str]:
    """Return the lines of Envoy's count of requests that it reset for their memory."""
    return [line for line in asyncio.run(gateway.running.metrics()) if line.startswith(RESETS)]


@pytest.mark.parametrize(("path", "headers"), [(INFER, ()), (GRPC_INFER, GRPC_HEADERS)], ids=["http", "grpc"])
def test_many_unfinished_bodies_do_not_take_the_memory_of_others(
    tmp_path: Path, path: str, headers: tuple[tuple[str, str], ...]
) -> None:
    with guarded_gateway(tmp_path, max_request_bytes=2**25, heap_bytes=HEAP_BYTES) as gateway, ExitStack() as stack:
        for _ in range(8):
            caller = Http2Caller(stack.enter_context(connected(gateway.port)), path, *headers)
            with suppress(ProtocolError, ConnectionError):  # it was reset, or its connection closed
                caller.send(MESSAGE_HEAD)
                for _ in range(MEBIBYTES << 6):
                    caller.send(bytes(2**14))
        until(gateway.serves, "somebody else is answered")
        # Envoy shows a count at the flush after it.
        resets = until(lambda: resets_of(gateway), "the count of resets is shown")

    assert 8 * MEBIBYTES * 2**20 > HEAP_BYTES
    assert [int(line.split()[-1]) > 0 for line in resets] == [True]
