"""HTTP/1.1 straight to a gateway: the framing of one request and its answer without I/O, and its connections.

httpx and h11 take longer for a request than all the rest of a call. They still carry HTTP/2 and requests by a proxy.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import httpcore
import httpx

from segserve.transports.pool import KEEP_S
from segserve_common.errors import BadRequestError

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
        ...

    def add(self, chunk: bytes) -> None:
        """Take a part of the body."""
        ...

    def left_s(self) -> float:
        """Return the seconds that are left for the exchange; raises if no time is left."""
        ...


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request; `body` is None for GET."""

    method: str
    url: httpx.URL
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
            f"{self.method} {self.url.raw_path.decode('ascii')} HTTP/1.1",
            f"Host: {self.url.netloc.decode('ascii')}",
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
        """Take what was read, nothing at the connection's end; raises `httpcore.RemoteProtocolError` if malformed."""
        if not data:
            if self._step is not Response._until_end:
                raise httpcore.RemoteProtocolError("Server disconnected without sending a whole response.")
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
                raise httpcore.RemoteProtocolError(f"the response's head is larger than {MAX_HEAD_BYTES} bytes")
            return False
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        status = _STATUS.fullmatch(first)
        if status is None:
            raise httpcore.RemoteProtocolError(f"not a status line of HTTP/1: {first[:80]!r}")
        code = int(status[2])
        if code == 101:
            raise httpcore.RemoteProtocolError("the server switches protocols unasked")
        if code < 200:
            return True  # an interim answer: another head follows
        headers: dict[str, str] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise httpcore.RemoteProtocolError(f"not a header: {line[:80]!r}")
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
                raise httpcore.RemoteProtocolError(f"Transfer-Encoding must be chunked, got {coding[:80]!r}")
            return Response._chunk
        if "content-length" not in headers:
            self.is_last = True
            return Response._until_end
        lengths = {length.strip() for length in headers["content-length"].split(",")}
        text = lengths.pop()
        if lengths or not (text.isascii() and text.isdecimal()) or len(text) > 18:
            raise httpcore.RemoteProtocolError(f"not a Content-Length: {headers['content-length'][:80]!r}")
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
            raise httpcore.RemoteProtocolError(f"not the size of a chunk: {line[:80]!r}")
        self._left = int(size[1], 16)
        self._step = Response._chunk_body if self._left else Response._trailer
        return True

    def _chunk_body(self) -> bool:
        self._take()
        if self._left or len(self._buffer) < 2:
            return False
        if self._line() != b"":
            raise httpcore.RemoteProtocolError("a chunk is longer than its size")
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
                raise httpcore.RemoteProtocolError(f"a line of the response is larger than {MAX_HEAD_BYTES} bytes")
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
        self._stream: httpcore.NetworkStream | None = None
        self._idle_since = 0.0

    def exchange(self, request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver) -> None:
        """Send a request and hand its answer over; raises httpcore's errors and the receiver's."""
        stream, self._stream = self._stream, None
        if stream is not None and _is_stale(stream, self._idle_since):
            stream.close()
            stream = None
        stream = stream or self._connect(request.url, min(timeouts["connect"], receiver.left_s()))
        response = Response(receiver)
        try:
            try:
                for part in request.parts():
                    stream.write(part, min(timeouts["write"], receiver.left_s()))
            except httpcore.WriteError:
                response.is_last = True  # a server may answer before it has read all of a request, and then closes
            while not response.is_complete:
                response.feed(stream.read(READ_BYTES, min(timeouts["read"], receiver.left_s())))
        except BaseException:
            stream.close()
            raise
        if response.is_last:
            stream.close()
        else:
            self._stream, self._idle_since = stream, time.monotonic()

    def close(self) -> None:
        """Close the connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _connect(self, url: httpx.URL, timeout_s: float) -> httpcore.NetworkStream:
        host, port = _address(url)
        stream = httpcore.SyncBackend().connect_tcp(host, port, timeout=timeout_s)
        return stream.start_tls(self._context, host, timeout_s) if url.scheme == "https" else stream


class AsyncHttp1Connection:
    """`Http1Connection` for the tasks of an event loop."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._stream: httpcore.AsyncNetworkStream | None = None
        self._idle_since = 0.0

    async def exchange(self, request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver) -> None:
        """Send a request and hand its answer over; raises httpcore's errors and the receiver's."""
        stream, self._stream = self._stream, None
        if stream is not None and _is_stale(stream, self._idle_since):
            await stream.aclose()
            stream = None
        stream = stream or await self._connect(request.url, timeouts["connect"])
        response = Response(receiver)
        try:
            try:
                for part in request.parts():
                    await stream.write(part, timeouts["write"])
            except httpcore.WriteError:
                response.is_last = True
            while not response.is_complete:
                response.feed(await stream.read(READ_BYTES, timeouts["read"]))
        except BaseException:
            await stream.aclose()
            raise
        if response.is_last:
            await stream.aclose()
        else:
            self._stream, self._idle_since = stream, time.monotonic()

    async def close(self) -> None:
        """Close the connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    async def _connect(self, url: httpx.URL, timeout_s: float) -> httpcore.AsyncNetworkStream:
        host, port = _address(url)
        stream = await httpcore.AnyIOBackend().connect_tcp(host, port, timeout=timeout_s)
        if url.scheme != "https":
            return stream
        try:
            return await stream.start_tls(self._context, host, timeout_s)
        except BaseException:
            await stream.aclose()  # httpcore leaves it open when the task is cancelled
            raise


def _is_stale(stream: httpcore.NetworkStream | httpcore.AsyncNetworkStream, idle_since: float) -> bool:
    """Return whether a kept connection has been idle for too long, or was closed by the server."""
    return time.monotonic() - idle_since > KEEP_S or bool(stream.get_extra_info("is_readable"))


def _address(url: httpx.URL) -> tuple[str, int]:
    return url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
