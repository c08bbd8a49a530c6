"""HTTP/1.1 straight to a gateway: the framing of one request and its answer without I/O, and a connection for threads.

httpx and h11 take longer for a request than all the rest of a call, and importing them longer than a command. They
still carry HTTP/2 and requests by a proxy.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from segserve.transports.base import ExchangeError, Phase
from segserve.transports.pool import KEEP_S
from segserve_common.errors import BadRequestError
from segserve_common.http.urls import Url

# Bodies are sent in chunks of this size; the deadline is checked between them.
CHUNK_BYTES: Final = 2**20
READ_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 100 * 1024
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]*")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n\0]*)?")
# The blanks around a value are stripped afterwards: for an expression that does it, many blanks take hours.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?")


class Receiver(Protocol):
    """Takes an answer as it arrives; raises to refuse it."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the status and the headers, whose names are in lower case."""

    def add(self, chunk: bytes) -> None:
        """Take a part of the body."""

    def left_s(self) -> float:
        """Return the seconds that are left for the exchange; raises if no time is left."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request; `body` is None for GET."""

    method: str
    url: Url
    headers: Mapping[str, str]
    body: bytes | None

    def parts(self) -> Iterator[bytes]:
        """Yield the request in parts to be written; a small one is one part, which costs one wake-up of the server.

        Raises `BadRequestError` for a header that would break it.
        """
        if not all(map(_NAME.fullmatch, self.headers)):
            raise BadRequestError("the name of a header is not a token of HTTP")
        if not all(map(_PRINTABLE.fullmatch, self.headers.values())):
            raise BadRequestError("the value of a header is not printable ASCII")
        lines = [
            f"{self.method} {self.url.target} HTTP/1.1",
            f"Host: {self.url.netloc}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if self.body is not None:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join((*lines, "", "")).encode("ascii")
        body = self.body or b""
        yield head + body[:CHUNK_BYTES]
        for start in range(CHUNK_BYTES, len(body), CHUNK_BYTES):
            yield body[start : start + CHUNK_BYTES]


Step: TypeAlias = "Callable[[Response], bool]"


class Response:
    """One answer, taken apart as its bytes arrive."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = bytearray()
        # Not bound to this object: as a circle, a request's pixels would stay until the next collection of garbage.
        self._step: Step = Response._head
        self._left = 0
        self.is_complete = False
        self.is_last = False
        """Whether the connection can carry no other request."""

    def feed(self, data: bytes) -> None:
        """Take what was read, nothing at the connection's end; raises `ExchangeError` if malformed."""
        if not data:
            if self._step is not Response._until_end:
                raise ExchangeError("read", "Server disconnected without sending a whole response.")
            self.is_complete = True
            return
        self._buffer += data
        while not self.is_complete and self._step(self):
            pass
        if self.is_complete and self._buffer:
            self.is_last = True  # what follows was not requested

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ExchangeError("read", f"the response's head is larger than {MAX_HEAD_BYTES} bytes")
            return False
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        status = _STATUS.fullmatch(first)
        if status is None:
            raise ExchangeError("read", f"not a status line of HTTP/1: {first[:80]!r}")
        code = int(status[2])
        if code == 101:
            raise ExchangeError("read", "the server switches protocols unasked")
        if code < 200:
            return True  # an interim answer: another head follows
        headers: dict[str, str] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise ExchangeError("read", f"not a header: {line[:80]!r}")
            name, value = field[1].decode().lower(), field[2].strip(b" \t").decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
        self.is_last |= status[1] == b"0" or "close" in options
        self._step = self._body(code, headers)
        self._receiver.begin(code, headers)
        return True

    def _body(self, code: int, headers: Mapping[str, str]) -> Step:
        """Return the step that reads the body, as RFC 9112 section 6.3 says."""
        if code in (204, 304):
            self.is_complete = True
            return Response._counted
        coding = headers.get("transfer-encoding")
        if coding is not None:
            if coding.lower() != "chunked":
                raise ExchangeError("read", f"Transfer-Encoding must be chunked, got {coding[:80]!r}")
            return Response._chunk
        if "content-length" not in headers:
            self.is_last = True
            return Response._until_end
        lengths = {length.strip() for length in headers["content-length"].split(",")}
        text = lengths.pop()
        if lengths or not (text.isascii() and text.isdecimal()) or len(text) > 18:
            raise ExchangeError("read", f"not a Content-Length: {headers['content-length'][:80]!r}")
        self._left = int(text)
        return Response._counted

    def _counted(self) -> bool:
        self._take()
        self.is_complete = self._left == 0
        return False

    def _until_end(self) -> bool:
        self._left = len(self._buffer)
        self._take()
        return False

    def _chunk(self) -> bool:
        line = self._line()
        if line is None:
            return False
        size = _CHUNK.fullmatch(line)
        if size is None:
            raise ExchangeError("read", f"not the size of a chunk: {line[:80]!r}")
        self._left = int(size[1], 16)
        self._step = Response._chunk_body if self._left else Response._trailer
        return True

    def _chunk_body(self) -> bool:
        self._take()
        if self._left or len(self._buffer) < 2:
            return False
        if self._line() != b"":
            raise ExchangeError("read", "a chunk is longer than its size")
        self._step = Response._chunk
        return True

    def _trailer(self) -> bool:
        line = self._line()
        self.is_complete = line == b""
        return line is not None

    def _line(self) -> bytes | None:
        """Take a line of a chunked body, None if its end has not arrived."""
        end = self._buffer.find(b"\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise ExchangeError("read", f"a line of the response is larger than {MAX_HEAD_BYTES} bytes")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _take(self) -> None:
        part = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(part)
        if part:
            self._receiver.add(part)


class Http1Connection:
    """A connection for one request at a time, from any thread; opened when it is needed."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._socket: socket.socket | None = None
        self._idle_since = 0.0

    def exchange(self, request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver) -> None:
        """Send a request and hand its answer over; raises `ExchangeError` and the receiver's errors."""
        connection, self._socket = self._socket, None
        if connection is not None and (time.monotonic() - self._idle_since > KEEP_S or _has_more(connection)):
            connection.close()
            connection = None
        connection = connection or self._connect(request.url, min(timeouts["connect"], receiver.left_s()))
        response = Response(receiver)
        try:
            try:
                for part in request.parts():
                    _send(connection, part, min(timeouts["write"], receiver.left_s()))
            except ExchangeError as error:
                if error.timed_out:
                    raise
                response.is_last = True  # a server may answer before it has read all of a request, and then closes
            while not response.is_complete:
                timeout_s = min(timeouts["read"], receiver.left_s())
                with _phase("read"):
                    connection.settimeout(timeout_s)
                    data = connection.recv(READ_BYTES)
                response.feed(data)
        except BaseException:
            connection.close()
            raise
        if response.is_last:
            connection.close()
        else:
            self._socket, self._idle_since = connection, time.monotonic()

    def close(self) -> None:
        """Close the connection."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _connect(self, url: Url, timeout_s: float) -> socket.socket:
        with _phase("connect"):
            connection = socket.create_connection((url.host, url.port), timeout_s)
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if url.scheme == "https":
                    return self._context.wrap_socket(connection, server_hostname=url.host)
            except BaseException:
                connection.close()
                raise
            return connection


@contextmanager
def _phase(phase: Phase) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ExchangeError(phase, timed_out=True) from error
    except OSError as error:
        raise ExchangeError(phase, str(error) or type(error).__name__) from error


def _send(connection: socket.socket, data: bytes, timeout_s: float) -> None:
    """Send all of it; the timeout is for each part that the system takes at once."""
    left = memoryview(data)
    with _phase("write"):
        connection.settimeout(timeout_s)
        while left:
            left = left[connection.send(left) :]


def _has_more(connection: socket.socket) -> bool:
    """Return whether the server has closed an idle connection, or has sent what was not requested."""
    try:
        connection.settimeout(0)
        socket.socket.recv(connection, 1, socket.MSG_PEEK)  # below TLS, whose own method takes no flag
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
