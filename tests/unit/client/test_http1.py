"""HTTP/1.1 of a gateway is read as h11 reads it, in whatever pieces it arrives."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from itertools import repeat

import h11
import httpx
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from segserve import DeadlineExceededError, ReadTimeoutError, Timeouts
from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import ConfigRequest, Send
from segserve.transports.base import Connection, ExchangeError
from segserve.transports.http import HttpTransport, _Answer, _url, typed_errors
from segserve.transports.http1 import Http1Connection, HttpRequest, Response
from segserve.transports.httpx_connections import AsyncHttp1Connection
from segserve_common.errors import BadRequestError
from segserve_common.http.urls import PORTS, Url
from segserve_common.kserve import model_path

GATEWAY = GatewayEndpoint.parse("http://gateway.example")
URL = Url.normalised("http://gateway.example")
TIMEOUTS = {"connect": 30.0, "write": 30.0, "read": 30.0}


class Received:
    """An answer as it was handed over."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.seconds_left: Iterator[float] = repeat(30.0)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    def add(self, chunk: bytes) -> None:
        self.body += chunk

    def left_s(self) -> float:
        return next(self.seconds_left)


def read(data: bytes, sizes: list[int], *, ends: bool = False) -> tuple[Received, Response]:
    """Read an answer in pieces of these sizes, then the rest, and the connection's end."""
    received = Received()
    response = Response(received)
    for size in (*sizes, len(data)):
        if response.is_complete or not data:
            break
        response.feed(data[:size])
        data = data[size:]
    if ends and not response.is_complete:
        response.feed(b"")
    return received, response


def read_by_h11(data: bytes) -> tuple[int, bytes, bool]:
    """Return the status, the body, and whether another request may follow."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body, is_closed = 0, b"", False
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if is_closed:
                raise h11.RemoteProtocolError("cut")
            connection.receive_data(b"")
            is_closed = True
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            is_kept = connection.their_state is h11.DONE and not connection.trailing_data[0]
            return status, body, is_kept and not is_closed


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200\r\nContent-Length: 5, 5\r\nX-A: 1\r\nx-a:\t2 \r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nx: y\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too Large\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 999 Request denied\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n",
]
BROKEN = [
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\0\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"nonsense",
    b"",
]


@pytest.mark.parametrize("data", ANSWERS)
@given(sizes=st.lists(st.integers(1, 9), max_size=30))
@example(sizes=[])
@example(sizes=[1] * 200)
def test_an_answer_is_the_same_in_whatever_pieces_it_arrives(data: bytes, sizes: list[int]) -> None:
    received, _ = read(data, sizes, ends=True)

    assert (received.status, received.body) == read_by_h11(data)[:2]


@pytest.mark.parametrize("data", ANSWERS)
def test_a_connection_is_kept_only_where_h11_keeps_it(data: bytes) -> None:
    _, response = read(data, [], ends=True)

    assert response.is_complete
    assert response.is_last != read_by_h11(data)[2]


@pytest.mark.parametrize("data", BROKEN)
def test_what_h11_refuses_is_refused(data: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        read_by_h11(data)
    with pytest.raises(ExchangeError):
        read(data, [], ends=True)


@given(st.sampled_from(ANSWERS), st.integers(0, 80), st.binary(max_size=3))
def test_no_byte_from_a_stranger_raises_anything_else(data: bytes, place: int, changed: bytes) -> None:
    data = data[:place] + changed + data[place + len(changed) :]
    try:
        _, response = read(data, [7], ends=True)
    except ExchangeError:
        return
    assert response.is_complete


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_a_head_or_a_line_without_an_end_is_not_read_for_ever(start: bytes) -> None:
    with pytest.raises(ExchangeError, match="larger than"):
        read(start + b"a" * 1_000_000, [len(start) + 1000] + [1000] * 1000)


@pytest.mark.parametrize("end", [b"b", b"b\0", b"\rb"])
def test_many_blanks_in_a_header_are_read_as_fast_as_other_bytes(end: bytes) -> None:
    """An expression that strips them would be tried for each of them: for hours."""
    data = b"HTTP/1.1 200 OK\r\nA: a" + b" " * 90_000 + end + b"\r\nContent-Length: 0\r\n\r\n"
    if end == b"b":
        assert read(data, [])[0].headers["a"].split() == ["a", "b"]
        return
    with pytest.raises(ExchangeError, match="not a header"):
        read(data, [])


def test_a_length_of_more_digits_than_python_reads_is_refused() -> None:
    answer = _Answer(Connection(GATEWAY), Send(ConfigRequest("coins"), 30.0))

    with pytest.raises(ExchangeError, match="not a Content-Length"):
        Response(answer).feed(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")


def test_an_answer_in_many_small_parts_takes_little_more_memory_than_in_one() -> None:
    answer = _Answer(Connection(GATEWAY), Send(ConfigRequest("coins"), 30.0))
    response = Response(answer)
    response.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    part = b"2\r\nab\r\n" * 1000

    tracemalloc.start()
    try:
        for _ in range(100):
            response.feed(part)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(answer.body()) == 200_000
    assert peak_bytes < 1_000_000


def test_several_headers_of_a_name_are_one_list() -> None:
    received, _ = read(ANSWERS[2], [])

    assert received.headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("x-trace", "1\r\nx-segserve-model: 2", "printable"),
        ("x-trace: 1\r\nx-segserve-model", "2", "token"),
        ("x-trace ", "1", "token"),
        ("", "1", "token"),
    ],
)
def test_a_header_cannot_begin_another(name: str, value: str, reason: str) -> None:
    request = HttpRequest("GET", URL, {name: value}, None)

    with pytest.raises(BadRequestError, match=reason):
        list(request.parts())


def test_a_large_body_is_written_in_parts_behind_its_length() -> None:
    body = bytes(range(256)) * 10_000
    request = HttpRequest("POST", Url.normalised("http://[::1]:8000/a%2Fb"), {"x-a": "1"}, body)

    first, *others = request.parts()

    head, _, start = first.partition(b"\r\n\r\n")
    lines = [b"POST /a%2Fb HTTP/1.1", b"Host: [::1]:8000", b"x-a: 1", b"Content-Length: 2560000"]
    assert head.split(b"\r\n") == lines
    assert b"".join((start, *others)) == body


def test_a_connection_whose_request_was_cut_by_its_answer_carries_no_other() -> None:
    ours, servers = socket.socketpair()
    servers.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    servers.shutdown(socket.SHUT_RD)
    connection = Http1Connection(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    connection._connect = lambda url, timeout_s: ours  # type: ignore[method-assign]
    received = Received()

    with servers:
        connection.exchange(HttpRequest("POST", URL, {}, b"image" * 1_000_000), TIMEOUTS, received)

    assert (received.status, received.body) == (413, b"no")
    assert connection._socket is None


@pytest.mark.parametrize("phase", ["write", "read"])
def test_each_wait_of_an_exchange_ends_with_its_whole_time(phase: str) -> None:
    """A server that takes nothing, or answers nothing, while the caller has hours for each phase."""
    ours, servers = socket.socketpair()
    connection = Http1Connection(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    connection._connect = lambda url, timeout_s: ours  # type: ignore[method-assign]
    received = Received()
    received.seconds_left = repeat(0.05)
    body = b"image" * (1_000_000 if phase == "write" else 1)

    with servers, pytest.raises(ExchangeError) as error:
        connection.exchange(HttpRequest("POST", URL, {}, body), dict.fromkeys(TIMEOUTS, 3600.0), received)

    assert (error.value.phase, error.value.timed_out) == (phase, True)


@pytest.mark.parametrize(("sent", "is_kept"), [(b"", True), (b"HTTP/1.1 408 Timeout", False), (None, False)])
def test_a_kept_connection_is_used_again_unless_the_server_has_closed_it_or_speaks(
    sent: bytes | None, is_kept: bool
) -> None:
    pairs = [socket.socketpair(), socket.socketpair()]
    new = iter(pairs)
    connection = Http1Connection(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    connection._connect = lambda url, timeout_s: next(new)[0]  # type: ignore[method-assign]

    def exchange(server: socket.socket) -> bytes:
        def answer() -> None:
            server.recv(1000)
            server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        thread, received = threading.Thread(target=answer), Received()
        thread.start()
        connection.exchange(HttpRequest("GET", URL, {}, None), TIMEOUTS, received)
        thread.join()
        return received.body

    first, second = (theirs for _, theirs in pairs)
    assert exchange(first) == b"ok"
    if sent is None:
        first.close()
    else:
        first.sendall(sent)

    assert exchange(first if is_kept else second) == b"ok"
    assert (connection._socket is pairs[0][0]) is is_kept
    for one in (*pairs[0], *pairs[1]):
        one.close()


def test_a_wait_that_the_whole_time_cut_short_is_not_called_a_phase_that_took_too_long() -> None:
    step = Send(ConfigRequest("coins"), 30.0, Timeouts(read_s=5))
    request = HttpRequest("GET", URL, {}, None)

    with pytest.raises(ReadTimeoutError), typed_errors(GATEWAY, step, request, time.monotonic() + 1000):
        raise ExchangeError("read", timed_out=True)
    with pytest.raises(DeadlineExceededError), typed_errors(GATEWAY, step, request, time.monotonic()):
        raise ExchangeError("read", timed_out=True)


async def test_a_handshake_that_is_cancelled_leaves_no_connection_open() -> None:
    has_begun, is_closed = asyncio.Event(), asyncio.Event()

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        has_begun.set()
        await reader.read()
        is_closed.set()
        writer.close()

    async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as server:
        url = Url.normalised(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        connection = AsyncHttp1Connection(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        exchange = connection.exchange(HttpRequest("GET", url, {}, None), TIMEOUTS, Received())
        asking = asyncio.create_task(exchange)
        await asyncio.wait_for(has_begun.wait(), 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(is_closed.wait(), 30)


@pytest.mark.parametrize("url", ["http://-\u00fc.example", f"http://gateway/{'a' * 70_000}"])
def test_a_url_that_httpx_refuses_is_a_bad_request(url: str) -> None:
    transport = HttpTransport(Connection(GatewayEndpoint.parse(url)))

    with pytest.raises(BadRequestError, match="not a URL"):
        transport.send(Send(ConfigRequest("coins"), 30.0))


@given(
    host=st.one_of(
        st.sampled_from(["127.0.0.1", "[::1]", "a.b-c.example", "10.0.0.1"]), st.text("az09.-_\u00fc", min_size=1)
    ),
    port=st.sampled_from(["", ":80", ":443", ":8080"]),
    scheme=st.sampled_from(["http", "https"]),
    prefix=st.sampled_from(["", "/prefix", "/a b", "/a/../b", "/%zz", "/\u00fc"]),
    model=st.text(min_size=1, max_size=9),
)
def test_a_url_is_what_httpx_makes_of_it(host: str, port: str, scheme: str, prefix: str, model: str) -> None:
    try:
        endpoint = GatewayEndpoint.parse(f"{scheme}://{host}{port}{prefix}")
        path = model_path(model)
        whole = httpx.URL(endpoint.url + path)
    except (BadRequestError, UnicodeEncodeError, httpx.InvalidURL):
        assume(False)

    found = _url(endpoint, path)
    assert (found.scheme, found.host) == (whole.scheme, whole.raw_host.decode())
    assert found.port == (whole.port or PORTS[whole.scheme])
    assert (found.netloc, found.target) == (whole.netloc.decode(), whole.raw_path.decode())


def test_a_command_or_a_client_that_asks_a_gateway_over_http_imports_no_httpx() -> None:
    """It takes longer than all the rest of `segserve predict` of one photograph."""
    program = """
import sys
import numpy as np
from segserve import Client, GatewayUnreachableError
try:
    Client("http://127.0.0.1:9").segment(np.zeros((8, 8, 3), np.uint8), model="coins")
except GatewayUnreachableError:
    sys.exit(bool({"httpx", "httpcore", "h11"} & sys.modules.keys()))
sys.exit(2)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
