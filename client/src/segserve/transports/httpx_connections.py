"""Connections by httpx and httpcore, which take long to import: HTTP/2, requests by a proxy, and event loops."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpcore
import httpx

from segserve.transports.base import ExchangeError, Phase, environment_errors
from segserve.transports.http1 import CHUNK_BYTES, READ_BYTES, HttpRequest, Receiver, Response
from segserve.transports.pool import KEEP_S
from segserve_common.http.urls import Url

LIMITS: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_S)
# The phase of each timeout, by the name that httpx and httpcore have for it.
_TIMEOUTS: Final[dict[str, Phase]] = {
    "ConnectTimeout": "connect",
    "ReadTimeout": "read",
    "WriteTimeout": "write",
    "PoolTimeout": "pool",
}
_NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol, httpcore.ConnectError)
# For tasks, httpcore translates no error of TLS after the handshake, which is when a gateway refuses a certificate.
_BROKEN: Final = (httpx.TransportError, httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError)


@contextmanager
def _exchange_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.TimeoutException, httpcore.TimeoutException) as error:
        raise ExchangeError(_TIMEOUTS[type(error).__name__], timed_out=True) from error
    except _BROKEN as error:
        phase: Phase = "connect" if isinstance(error, _NOT_CONNECTED) else "read"
        raise ExchangeError(phase, str(error) or type(error).__name__) from error


class AsyncHttp1Connection:
    """`Http1Connection` for the tasks of an event loop."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._stream: httpcore.AsyncNetworkStream | None = None
        self._idle_since = 0.0

    async def exchange(self, request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver) -> None:
        """Send a request and hand its answer over; raises `ExchangeError` and the receiver's errors."""
        with _exchange_errors():
            stream, self._stream = self._stream, None
            # A kept connection may have been closed by the server.
            if stream is not None and (
                time.monotonic() - self._idle_since > KEEP_S or stream.get_extra_info("is_readable")
            ):
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

    async def _connect(self, url: Url, timeout_s: float) -> httpcore.AsyncNetworkStream:
        stream = await httpcore.AnyIOBackend().connect_tcp(url.host, url.port, timeout=timeout_s)
        if url.scheme != "https":
            return stream
        try:
            return await stream.start_tls(self._context, url.host, timeout_s)
        except BaseException:
            await stream.aclose()  # httpcore leaves it open when the task is cancelled
            raise


class HttpxConnection:
    """An httpx client, for HTTP/2 and for requests by a proxy."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        with environment_errors():
            self._client = httpx.Client(**arguments, limits=LIMITS)

    def exchange(self, request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver) -> None:
        """Send a request and hand its answer over; raises `ExchangeError` and the receiver's errors."""
        with _exchange_errors(), self._client.stream(**_httpx_arguments(request, timeouts, receiver)) as response:
            receiver.begin(response.status_code, dict(response.headers))
            for chunk in response.iter_raw():
                receiver.left_s()
                receiver.add(chunk)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class AsyncHttpxConnection:
    """`HttpxConnection` for the tasks of an event loop."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        with environment_errors():
            self._client = httpx.AsyncClient(**arguments, limits=LIMITS)

    async def exchange(self, request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver) -> None:
        """Send a request and hand its answer over; raises `ExchangeError` and the receiver's errors."""
        with _exchange_errors():
            async with self._client.stream(**_httpx_arguments(request, timeouts, None)) as response:
                receiver.begin(response.status_code, dict(response.headers))
                async for chunk in response.aiter_raw():
                    receiver.add(chunk)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()


def _httpx_arguments(request: HttpRequest, timeouts: Mapping[str, float], receiver: Receiver | None) -> dict[str, Any]:
    headers, content, url = dict(request.headers), request.body, request.url
    whole_url = f"{url.scheme}://{url.netloc}{url.target}"
    arguments = {"method": request.method, "url": whole_url, "extensions": {"timeout": dict(timeouts)}}
    if receiver is None or content is None or len(content) <= CHUNK_BYTES:
        return {**arguments, "headers": headers, "content": content}

    def chunks(whole: memoryview) -> Iterator[memoryview]:
        for start in range(0, len(whole), CHUNK_BYTES):
            receiver.left_s()
            yield whole[start : start + CHUNK_BYTES]

    # With a known length, httpx does not fall back to chunked transfer encoding.
    headers["Content-Length"] = str(len(content))
    return {**arguments, "headers": headers, "content": chunks(memoryview(content))}
