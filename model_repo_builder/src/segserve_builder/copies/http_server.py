"""A small HTTP/1.1 server on a UNIX socket or a port of loopback: takes each request whole, and answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import h11

MAX_CONNECTIONS: Final = 256
"""Further connections are closed at once. Each needs a file, and memory for headers."""
MAX_HEADER_BYTES: Final = 128 * 1024
MAX_PARTS: Final = 100_000
"""A body comes in at most so many parts: one of millions of tiny ones would keep the server from all others."""
REQUEST_TIMEOUT_S: Final = 30.0
LOOPBACK: Final = "127.0.0.1"
SOCKET_MODE: Final = 0o660
"""A gateway, its sidecar and its comparator may be different users of one group; the folder keeps others out."""


@dataclass(slots=True)
class ByteBudget:
    """Bytes that may be held at once."""

    limit: int
    held: int = 0

    def take(self, count: int) -> bool:
        """Take so many bytes, none if they are not there."""
        if self.held + count > self.limit:
            return False
        self.held += count
        return True

    def give_back(self, count: int) -> None:
        """Give bytes back."""
        self.held -= count


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request. Names of headers are lower case; of a header that comes twice the last one counts.

    `body` is None if it was longer than allowed, or if too much is held already.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


RequestHandler: TypeAlias = Callable[[ReceivedRequest], HttpReply]
"""Answers a request without waiting for anything. The bytes of its body are the handler's: it gives them back."""


@asynccontextmanager
async def serving(
    at: Path | int,
    handler: RequestHandler,
    *,
    max_body: int,
    budget: ByteBudget,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[None]:
    """Serve at a socket, or at a port of loopback, during the block.

    Bodies have at most `max_body` bytes, all together `budget`.
    """
    connections: set[_Connection] = set()

    def connect() -> _Connection:
        return _Connection(connections, handler, max_body, budget, max_connections)

    loop = asyncio.get_running_loop()
    if isinstance(at, int):
        server = await loop.create_server(connect, LOOPBACK, at)
    else:
        # No other user may access the socket from its first moment.
        former = os.umask(0o777 & ~SOCKET_MODE)
        try:
            server = await loop.create_unix_server(connect, str(at), backlog=MAX_CONNECTIONS)
        finally:
            os.umask(former)
    try:
        yield
    finally:
        server.close()
        for connection in tuple(connections):
            connection.abort()
        await server.wait_closed()
        if isinstance(at, Path):
            with contextlib.suppress(OSError):
                at.unlink()


class _Connection(asyncio.Protocol):
    def __init__(
        self,
        connections: set[_Connection],
        handler: RequestHandler,
        max_body: int,
        budget: ByteBudget,
        max_connections: int,
    ) -> None:
        self._connections = connections
        self._handler = handler
        self._max_body = max_body
        self._budget = budget
        self._max_connections = max_connections
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._transport: asyncio.Transport
        self._request: h11.Request | None = None
        self._body: bytearray | None = None
        self._parts = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._connections) >= self._max_connections:
            transport.abort()
        self._connections.add(self)

    def abort(self) -> None:
        self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)
        self._forget()

    def eof_received(self) -> bool:
        self.data_received(b"")
        return False

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while self._proceed(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)

    def _proceed(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> bool:
        """Take the next event of a connection; return whether another one may be there already."""
        match event:
            case h11.Request(method=b"CONNECT"):
                self._refuse(405)
            case h11.Request():
                self._begin(event)
            case h11.Data():
                self._add(event.data)
            case h11.EndOfMessage():
                self._end()
            case h11.ConnectionClosed():
                self._transport.close()
                return False
            case _:
                return False
        return not self._transport.is_closing()

    def _begin(self, request: h11.Request) -> None:
        self._request, self._body, self._parts = request, bytearray(), 0
        self._deadline = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT_S, self.abort)
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))

    def _add(self, data: bytes | bytearray) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            self.abort()
        elif self._body is None:
            pass  # The rest is read, and dropped: a sender that has to wait would keep its caller waiting.
        elif len(self._body) + len(data) <= self._max_body and self._budget.take(len(data)):
            self._body += data
        else:
            self._drop_body()

    def _end(self) -> None:
        request, body = self._request, self._body
        assert request is not None
        # From here on the bytes are the handler's.
        self._body = None
        self._forget()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        received = ReceivedRequest(
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            headers,
            None if body is None else bytes(body),
        )
        reply = self._handler(received)
        length = {} if reply.status == 204 else {"content-length": str(len(reply.body))}
        self._send(h11.Response(status_code=reply.status, headers=list({**reply.headers, **length}.items())))
        if reply.body and request.method != b"HEAD":
            self._send(h11.Data(data=reply.body))
        self._send(h11.EndOfMessage())
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self._transport.close()

    def _refuse(self, status: int) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [("content-length", "0"), ("connection", "close")]
            self._send(h11.Response(status_code=status, headers=headers))
            self._send(h11.EndOfMessage())
        self._transport.close()

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._transport.write(data)

    def _drop_body(self) -> None:
        if self._body is not None:
            self._budget.give_back(len(self._body))
            self._body = None

    def _forget(self) -> None:
        """Forget the request that is being received."""
        self._drop_body()
        self._request = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
