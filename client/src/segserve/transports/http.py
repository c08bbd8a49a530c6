"""The HTTP transport: KServe v2 with Triton's binary tensors, over httpx, whose errors become the client's."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from gzip import compress
from importlib.util import find_spec
from typing import Any, Final

import httpx

from segserve.calls.answers import REVISION_HEADER, read_model_info, read_pixel_format
from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import ConfigRequest, Send
from segserve.errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    GatewayUnreachableError,
    MissingExtraError,
    PoolTimeoutError,
    ReadTimeoutError,
    TlsError,
    WriteTimeoutError,
    http_error,
)
from segserve.results.images import PIXELS
from segserve.results.values import ModelInfo, PixelFormat
from segserve.transports.base import Connection, answer_too_large, check_process, deadline, deadline_exceeded
from segserve.transports.pool import LIMITS, AsyncConnectionPool, ConnectionPool
from segserve_common.backoff import retry_after_s
from segserve_common.errors import BadRequestError, ProtocolError, SegserveError
from segserve_common.kserve import (
    HEADER_LENGTH,
    InferAnswer,
    InferRequest,
    decode_http,
    encode_http,
    json_object,
    model_path,
)

# The error of each phase, and the timeout that applies to it.
_PHASES: Final[dict[type[httpx.TimeoutException], tuple[type[SegserveError], str]]] = {
    httpx.ConnectTimeout: (ConnectTimeoutError, "connect_s"),
    httpx.ReadTimeout: (ReadTimeoutError, "read_s"),
    httpx.WriteTimeout: (WriteTimeoutError, "write_s"),
    httpx.PoolTimeout: (PoolTimeoutError, "pool_s"),
}
_NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
# SSL errors that mean a lost connection rather than a failed handshake.
_CONNECTION_ENDED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

# Compressing an answer, which is mostly PNG and RLE, takes Triton longer than sending it, so the client accepts gzip
# only on request. Arrays of pixels are worth compressing from this size on.
GZIP_BYTES: Final = 16 * 1024
GZIP_LEVEL: Final = 1
# Bodies are sent in chunks of this size; the deadline is checked between them.
CHUNK_BYTES: Final = 2**20
# Others expand a chunk a hundred thousand times, and a list of them multiplies.
_ENCODINGS: Final = ("identity", "gzip")


def phase_timeouts(step: Send) -> dict[str, float]:
    """Return httpx's timeout for each phase, in seconds: the caller's, and never more than the step's timeout."""
    left, parts = step.timeout_s, step.timeouts
    own = {"connect": parts.connect_s, "read": parts.read_s, "write": parts.write_s, "pool": parts.pool_s}
    return {phase: left if limit is None else min(limit, left) for phase, limit in own.items()}


@contextmanager
def typed_errors(endpoint: GatewayEndpoint, step: Send) -> Iterator[None]:
    """Translate httpx's errors to the client's."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _timeout(endpoint, step, error) from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"the answer cannot be decompressed: {error}") from error
    except httpx.TransportError as error:
        raise _unreachable(endpoint, error) from error


def _timeout(endpoint: GatewayEndpoint, step: Send, error: httpx.TimeoutException) -> SegserveError:
    kind, phase = _PHASES[type(error)]
    limit_s = getattr(step.timeouts, phase)
    if limit_s is None or limit_s >= step.timeout_s:
        return deadline_exceeded(endpoint, step)
    return kind(f"no progress with {endpoint.url} for {phase}={limit_s!r}")


def _unreachable(endpoint: GatewayEndpoint, error: httpx.TransportError) -> SegserveError:
    cause = str(error) or type(error).__name__
    if _refused_by_tls(error):
        return TlsError(f"TLS handshake with {endpoint.url} failed: {cause}")
    if isinstance(error, _NOT_CONNECTED):
        return GatewayUnreachableError(f"cannot reach {endpoint.url}: {cause}")
    return ConnectionLostError(f"lost the connection to {endpoint.url}: {cause}{_size_hint(error)}")


def _size_hint(error: httpx.TransportError) -> str:
    # A gateway answers a body that is too large before its end; who only sends until then sees the reset alone.
    size = int(error.request.headers.get("content-length", 0))
    if size <= CHUNK_BYTES:
        return ""
    return f"; a request above the gateway's maxRequestBytes ends so, too: this one has {size} bytes"


def _refused_by_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, _CONNECTION_ENDED)
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request; `path` starts at the gateway's prefix, `body` is None for GET."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class HttpTransport:
    """One pool of connections for all threads; a forked child opens its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open()

    def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send the request and read the answer; a body that trickles in or out is abandoned at the deadline too."""
        if self._process != os.getpid():
            self._open()
        deadline_s = time.monotonic() + step.timeout_s
        endpoint, timeouts = self._connection.endpoint, phase_timeouts(step)
        request = to_http(step.request, gzip=self._connection.gzip)
        headers = {**request.headers, **step.headers, **self._connection.credentials.headers()}
        content: bytes | Iterator[bytes] | None = request.body
        if request.body is not None and len(request.body) > CHUNK_BYTES:
            # With a known length, httpx does not fall back to chunked transfer encoding.
            headers["Content-Length"] = str(len(request.body))
            content = _chunks(request.body, endpoint, step, deadline_s)
        answer = _Answer(self._connection)
        with (
            typed_errors(endpoint, step),
            self._pool.acquire(timeouts["pool"]) as client,
            client.stream(
                request.method,
                _absolute(endpoint, request.path),
                headers=headers,
                content=content,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            answer.begin(response.headers)
            for chunk in response.iter_bytes():
                answer.add(chunk)
                if time.monotonic() > deadline_s:
                    raise deadline_exceeded(endpoint, step)
        return from_http(step.request, response.status_code, response.headers, answer.body())

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _open(self) -> None:
        arguments = _client_arguments(self._connection)
        self._pool = ConnectionPool(lambda: httpx.Client(**arguments), shared=self._connection.http2)
        self._process = os.getpid()


class AsyncHttpTransport:
    """One pool of connections for all tasks of an event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        arguments = _client_arguments(connection)
        self._pool = AsyncConnectionPool(lambda: httpx.AsyncClient(**arguments), shared=connection.http2)
        self._process = os.getpid()

    async def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send the request and read the answer."""
        check_process(self._process)
        endpoint, timeouts = self._connection.endpoint, phase_timeouts(step)
        request = to_http(step.request, gzip=self._connection.gzip)
        async with deadline(endpoint, step):
            headers = {**request.headers, **step.headers, **await self._connection.credentials.async_headers()}
            answer = _Answer(self._connection)
            with typed_errors(endpoint, step):
                async with (
                    self._pool.acquire(timeouts["pool"]) as client,
                    client.stream(
                        request.method,
                        _absolute(endpoint, request.path),
                        headers=headers,
                        content=request.body,
                        extensions={"timeout": timeouts},
                    ) as response,
                ):
                    answer.begin(response.headers)
                    async for chunk in response.aiter_bytes():
                        answer.add(chunk)
        return from_http(step.request, response.status_code, response.headers, answer.body())

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


class _Answer:
    """The body of an answer as it arrives, up to the client's bound; a compressed chunk may be 64 MiB beyond it."""

    def __init__(self, connection: Connection) -> None:
        self._endpoint, self._limit = connection.endpoint, connection.max_answer_bytes
        self._chunks: list[bytes] = []
        self._size = 0

    def begin(self, headers: Mapping[str, str]) -> None:
        """Refuse a body that is announced as too large, or compressed in a way that was not asked for."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in _ENCODINGS:
            raise ProtocolError(f"Content-Encoding must be one of {', '.join(_ENCODINGS)}, got {encoding!r}")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit:
            raise answer_too_large(self._endpoint, f"{length} bytes", self._limit)

    def add(self, chunk: bytes) -> None:
        """Keep a chunk."""
        self._size += len(chunk)
        if self._size > self._limit:
            self._chunks.clear()
            raise answer_too_large(self._endpoint, f"{self._size} bytes and more", self._limit)
        self._chunks.append(chunk)

    def body(self) -> bytes:
        """Return the whole body."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)


def to_http(request: ConfigRequest | InferRequest, *, gzip: bool = False) -> HttpRequest:
    """Return the HTTP form of a request; `gzip` compresses arrays of pixels.

    Raises `BadRequestError` for an empty model name and for parameters that JSON cannot hold.
    """
    path = model_path(request.model)
    if isinstance(request, ConfigRequest):
        return HttpRequest("GET", f"{path}/config")
    headers, body = encode_http(request)
    encoded = HttpRequest("POST", f"{path}/infer", headers, body)
    if gzip and len(body) > GZIP_BYTES and any(tensor.name == PIXELS for tensor in request.inputs):
        return replace(encoded, headers={**headers, "Content-Encoding": "gzip"}, body=compress(body, GZIP_LEVEL))
    return encoded


def from_http(
    request: ConfigRequest | InferRequest, status: int, headers: Mapping[str, str], body: bytes
) -> ModelInfo | InferAnswer:
    """Return the answer, or raise the error that the status stands for."""
    if status != 200:
        raise http_error(
            status,
            _error_text(body),
            model=request.model,
            revision=headers.get(REVISION_HEADER),
            retry_after_s=retry_after_s(headers.get("retry-after")),
        )
    if isinstance(request, ConfigRequest):
        return _model_info(request.model, json_object(body))
    return decode_http(body, headers.get(HEADER_LENGTH))


@lru_cache(maxsize=4096)
def _absolute(endpoint: GatewayEndpoint, path: str) -> httpx.URL:
    """Return the URL of a path, parsed once: httpx would parse it three times per request."""
    return httpx.URL(endpoint.url + path)


def _chunks(body: bytes, endpoint: GatewayEndpoint, step: Send, deadline_s: float) -> Iterator[bytes]:
    """Yield the body in chunks, so that a slow upload ends at the deadline too."""
    whole = memoryview(body)
    for start in range(0, len(body), CHUNK_BYTES):
        if time.monotonic() > deadline_s:
            raise deadline_exceeded(endpoint, step)
        yield whole[start : start + CHUNK_BYTES]  # type: ignore[misc]


def _model_info(model: str, config: Mapping[str, Any]) -> ModelInfo:
    match config:
        case {"output": list(outputs)}:
            names = [str(output.get("name")) for output in outputs if isinstance(output, dict)]
        case _:
            raise ProtocolError(f"the configuration of model {model!r} lists no outputs")
    parameters = config.get("parameters")
    texts = {}
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        match value:
            case {"string_value": str(text)}:
                texts[name] = text
    return read_model_info(model, names, texts, _pixel_format(config.get("input")))


def _pixel_format(inputs: object) -> PixelFormat | None:
    for entry in inputs if isinstance(inputs, list) else ():
        match entry:
            case {"name": "PIXELS", "data_type": datatype, "dims": list(dims)}:
                return read_pixel_format(datatype, dims)
    return None


def _error_text(body: bytes) -> str:
    """Return Triton's `{"error": ...}`, or the beginning of a proxy's plain text."""
    try:
        match json.loads(body):
            case {"error": str(text)}:
                return text
    except (ValueError, RecursionError):
        pass
    return body[:300].decode(errors="replace").strip()


def _client_arguments(connection: Connection) -> dict[str, Any]:
    endpoint, http2 = connection.endpoint, connection.http2
    if http2 and find_spec("h2") is None:
        raise MissingExtraError("http2 needs a package that is not installed: pip install 'segserve[http2]'")
    return {
        "headers": {"Accept-Encoding": "gzip" if connection.gzip else "identity"},
        "trust_env": not endpoint.is_loopback,
        # One context for all clients: making one takes longer than a request.
        "verify": _tls_context(connection),
        "http2": http2,
        # Without TLS there is no negotiation: the server is assumed to speak HTTP/2, as Envoy does.
        "http1": not (http2 and endpoint.scheme == "http"),
        "limits": LIMITS,
    }


def _tls_context(connection: Connection) -> ssl.SSLContext:
    tls = connection.tls
    if connection.endpoint.scheme == "http":
        # Never used. Reading all authorities would take longer than some calls, so this context trusts nobody.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls is None:
        return httpx.create_ssl_context(trust_env=not connection.endpoint.is_loopback)
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.certificate_file is not None:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
    except (OSError, ValueError) as error:
        raise BadRequestError(f"{tls!r} cannot be used: {error}") from error
    return context
