"""The HTTP transport: KServe v2 with Triton's binary tensors; errors of connections become the client's."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import ssl
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from gzip import compress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

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
from segserve.transports.base import (
    PROXY_VARIABLES,
    Connection,
    ExchangeError,
    Phase,
    answer_too_large,
    check_loop,
    check_process,
    deadline,
    deadline_exceeded,
    environment_errors,
)
from segserve.transports.http1 import CHUNK_BYTES, Http1Connection, HttpRequest
from segserve.transports.pool import AsyncConnectionPool, ConnectionPool
from segserve_common.backoff import retry_after_s
from segserve_common.errors import BadRequestError, ProtocolError, SegserveError
from segserve_common.http.urls import Url, UrlError
from segserve_common.kserve import (
    HEADER_LENGTH,
    InferAnswer,
    InferRequest,
    decode_http,
    encode_http,
    json_object,
    model_path,
)

if TYPE_CHECKING:
    from segserve.transports.httpx_connections import AsyncHttp1Connection, AsyncHttpxConnection, HttpxConnection

# The error of each phase, and the timeout that applies to it.
_PHASES: Final[dict[Phase, tuple[type[SegserveError], str]]] = {
    "connect": (ConnectTimeoutError, "connect_s"),
    "read": (ReadTimeoutError, "read_s"),
    "write": (WriteTimeoutError, "write_s"),
    "pool": (PoolTimeoutError, "pool_s"),
}
# SSL errors that mean a lost connection rather than a failed handshake.
_CONNECTION_ENDED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

# Compressing an answer, which is mostly PNG and RLE, takes Triton longer than sending it, so the client accepts gzip
# only on request. Arrays of pixels are worth compressing from this size on.
GZIP_BYTES: Final = 16 * 1024
GZIP_LEVEL: Final = 1
_HEADER_LENGTH: Final = HEADER_LENGTH.lower()
# No address of IPv6 and no name of digits alone, no dot at the start of a segment, no escape of one digit.
_PLAIN_HOST: Final = re.compile(r"127\.0\.0\.1|[a-z][a-z0-9-]{,62}(?:\.[a-z0-9][a-z0-9-]{,62}){,9}")
_PLAIN_PATH: Final = re.compile(r"(?:/(?!\.)(?:[A-Za-z0-9._~-]|%[0-9A-F]{2}){1,999}){1,9}")
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# Others expand a chunk a hundred thousand times, and a list of them multiplies.
_ENCODINGS: Final = ("identity", "gzip")


def phase_timeouts(step: Send) -> dict[str, float]:
    """Return httpx's timeout for each phase, in seconds: the caller's, and never more than the step's timeout."""
    left, parts = step.timeout_s, step.timeouts
    own = {"connect": parts.connect_s, "read": parts.read_s, "write": parts.write_s, "pool": parts.pool_s}
    return {phase: left if limit is None else min(limit, left) for phase, limit in own.items()}


@contextmanager
def typed_errors(
    endpoint: GatewayEndpoint, step: Send, request: HttpRequest, deadline_s: float = math.inf
) -> Iterator[None]:
    """Turn an `ExchangeError` into the client's error."""
    try:
        yield
    except ExchangeError as error:
        if not error.timed_out:
            raise _unreachable(endpoint, error, len(request.body or b"")) from error
        kind, phase = _PHASES[error.phase]
        limit_s = getattr(step.timeouts, phase)
        if limit_s is None or limit_s >= step.timeout_s or time.monotonic() >= deadline_s:
            raise deadline_exceeded(endpoint, step) from error
        raise kind(f"no progress with {endpoint.url} for {phase}={limit_s!r}") from error


def _unreachable(endpoint: GatewayEndpoint, error: ExchangeError, size: int) -> SegserveError:
    if _refused_by_tls(error):
        plain = "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER_FAILURE" in str(error)
        advice = f"; the gateway seems to speak plain HTTP: use http://{endpoint.url.partition('://')[2]}"
        return TlsError(f"TLS handshake with {endpoint.url} failed: {error}{advice if plain else ''}")
    if error.phase == "connect":
        names = [] if endpoint.is_loopback else [each for each in os.environ if each.upper() in PROXY_VARIABLES[:3]]
        by = f" by the proxy of {', '.join(names)}" if names else ""
        return GatewayUnreachableError(f"cannot reach {endpoint.url}{by}: {error}")
    # A gateway answers a body that is too large before its end; a client that only sends until then sees only the
    # reset.
    hint = f"; a request above the gateway's maxRequestBytes ends in the same way: this one has {size} bytes"
    return ConnectionLostError(f"lost the connection to {endpoint.url}: {error}{hint if size > CHUNK_BYTES else ''}")


def _refused_by_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, _CONNECTION_ENDED)
        error = error.__cause__ or error.__context__
    return False


class HttpTransport:
    """One pool of connections for all threads; a forked child opens its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open()

    def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send the request and read the answer; a body that trickles in or out is also abandoned at the deadline."""
        if self._process != os.getpid():
            self._open()
        deadline_s, timeouts = time.monotonic() + step.timeout_s, phase_timeouts(step)
        answer = _Answer(self._connection, step, deadline_s)
        headers = {**step.headers, **self._connection.credentials.headers()}
        request = to_http(step.request, self._connection, headers)
        with (
            typed_errors(self._connection.endpoint, step, request, deadline_s),
            self._pool.acquire(timeouts["pool"]) as connection,
        ):
            connection.exchange(request, timeouts, answer)
        return from_http(step.request, answer.status, answer.headers, answer.body())

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _open(self) -> None:
        arguments, is_direct = _client_arguments(self._connection), _is_direct(self._connection)

        def make() -> Http1Connection | HttpxConnection:
            if is_direct:
                return Http1Connection(arguments["verify"])
            from segserve.transports.httpx_connections import HttpxConnection

            return HttpxConnection(arguments)

        self._pool = ConnectionPool(make, shared=self._connection.http2)
        self._process = os.getpid()


class AsyncHttpTransport:
    """One pool of connections for all tasks of an event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        arguments, is_direct = _client_arguments(connection), _is_direct(connection)

        def make() -> AsyncHttp1Connection | AsyncHttpxConnection:
            from segserve.transports import httpx_connections as connections

            if is_direct:
                return connections.AsyncHttp1Connection(arguments["verify"])
            return connections.AsyncHttpxConnection(arguments)

        self._pool = AsyncConnectionPool(make, shared=connection.http2)
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send the request and read the answer."""
        check_process(self._process)
        self._loop = check_loop(self._loop)
        async with deadline(self._connection.endpoint, step):
            answer, timeouts = _Answer(self._connection, step), phase_timeouts(step)
            headers = {**step.headers, **await self._connection.credentials.async_headers()}
            request = to_http(step.request, self._connection, headers)
            with typed_errors(self._connection.endpoint, step, request):
                async with self._pool.acquire(timeouts["pool"]) as connection:
                    await connection.exchange(request, timeouts, answer)
        return from_http(step.request, answer.status, answer.headers, answer.body())

    async def close(self) -> None:
        """Close the connections."""
        check_loop(self._loop)
        await self._pool.close()


class _Answer:
    """An answer as it arrives, its body uncompressed and bounded by the client's `max_answer_bytes`."""

    def __init__(self, connection: Connection, step: Send, deadline_s: float = math.inf) -> None:
        self._endpoint, self._limit = connection.endpoint, connection.max_answer_bytes
        self._step, self._deadline_s = step, deadline_s
        self._chunks: list[bytes] = []
        self._size = 0
        self._gzip: Any = None
        self.status = 0
        self.headers: Mapping[str, str] = {}

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Refuse a body that is announced as too large, or compressed in a way that was not requested."""
        self.status, self.headers = status, headers
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in _ENCODINGS:
            raise ProtocolError(f"Content-Encoding must be one of {', '.join(_ENCODINGS)}, got {encoding!r}")
        if encoding == "gzip":
            self._gzip = zlib.decompressobj(_GZIP_WINDOW)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit:
            raise answer_too_large(self._endpoint, f"{length} bytes", self._limit)

    def add(self, chunk: bytes) -> None:
        """Keep a part of the body."""
        if self._gzip is not None:
            try:
                chunk = self._gzip.decompress(chunk, self._limit - self._size + 1)
            except zlib.error as error:
                raise ProtocolError(f"the answer cannot be decompressed: {error}") from error
        self._size += len(chunk)
        if self._size > self._limit:
            self._chunks.clear()
            raise answer_too_large(self._endpoint, f"{self._size} bytes and more", self._limit)
        self._chunks.append(chunk)
        if len(self._chunks) > 1000 + self._size // 4096:
            # A list of chunks of a few bytes each would take many times their size.
            self._chunks = [b"".join(self._chunks)]

    def left_s(self) -> float:
        """Return the seconds that are left; raises `DeadlineExceededError` if the request's time is over."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise deadline_exceeded(self._endpoint, self._step)
        return left_s

    def body(self) -> bytes:
        """Return the whole body."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)


def to_http(request: ConfigRequest | InferRequest, connection: Connection, headers: Mapping[str, str]) -> HttpRequest:
    """Return the HTTP form of a request; the connection's `gzip` compresses arrays of pixels.

    Raises `BadRequestError` for an empty model name and for parameters that JSON cannot hold.
    """
    path = model_path(request.model)
    headers = {"accept-encoding": "gzip" if connection.gzip else "identity", "user-agent": "segserve", **headers}
    if isinstance(request, ConfigRequest):
        return HttpRequest("GET", _url(connection.endpoint, f"{path}/config"), headers, None)
    about_body, body = encode_http(request)
    headers |= about_body
    if connection.gzip and len(body) > GZIP_BYTES and any(tensor.name == PIXELS for tensor in request.inputs):
        headers["Content-Encoding"] = "gzip"
        body = compress(body, GZIP_LEVEL)
    return HttpRequest("POST", _url(connection.endpoint, f"{path}/infer"), headers, body)


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
        config = json_object(body)
        match config:
            case {"output": list(outputs)}:
                names = [str(output.get("name")) for output in outputs if isinstance(output, dict)]
            case _:
                raise ProtocolError(f"the configuration of model {request.model!r} lists no outputs")
        parameters = config.get("parameters")
        texts = {}
        for name, value in parameters.items() if isinstance(parameters, dict) else ():
            match value:
                case {"string_value": str(text)}:
                    texts[name] = text
        return read_model_info(request.model, names, texts, _pixel_format(config.get("input")))
    return decode_http(body, headers.get(_HEADER_LENGTH))


@lru_cache(maxsize=4096)
def _url(endpoint: GatewayEndpoint, path: str) -> Url:
    """Return the URL of a path, parsed once. httpx reads what is more than letters, digits and the usual signs."""
    path = endpoint.path + path
    if not (_PLAIN_HOST.fullmatch(endpoint.host) and _PLAIN_PATH.fullmatch(path)):
        url = f"{endpoint.url}{path.removeprefix(endpoint.path)}"
        try:
            return Url.normalised(url)
        except UrlError as error:
            raise BadRequestError(f"{error}, got {url!r}") from error
    return Url(endpoint.scheme, endpoint.host, endpoint.port, path)


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
    text = body[:300].decode(errors="replace").strip()
    return "no server of the model is ready (no healthy upstream)" if text == "no healthy upstream" else text


def _is_direct(connection: Connection) -> bool:
    """Return whether requests go to the gateway itself over HTTP/1.1; for a proxy, httpx reads the environment."""
    if connection.http2 or connection.endpoint.is_loopback:
        return not connection.http2
    from urllib.request import getproxies  # imports http.client and email

    proxies = getproxies()
    return not any(proxies.get(name) for name in (connection.endpoint.scheme, "all"))


def _client_arguments(connection: Connection) -> dict[str, Any]:
    endpoint, http2 = connection.endpoint, connection.http2
    if http2 and find_spec("h2") is None:
        raise MissingExtraError("http2 needs a package that is not installed: pip install 'segserve[http2]'")
    return {
        "trust_env": not endpoint.is_loopback,
        # One context for all clients: making one takes longer than a request.
        "verify": _tls_context(connection),
        "http2": http2,
        # Without TLS there is no negotiation: the server is assumed to speak HTTP/2, as Envoy does.
        "http1": not (http2 and endpoint.scheme == "http"),
    }


def _tls_context(connection: Connection) -> ssl.SSLContext:
    tls = connection.tls
    if connection.endpoint.scheme == "http":
        # Never used. Reading all authorities would take longer than some calls, so this context trusts no authority.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls is None:
        import httpx

        with environment_errors():
            context = httpx.create_ssl_context(trust_env=not connection.endpoint.is_loopback)
    else:
        try:
            context = ssl.create_default_context(cafile=tls.ca_file)
            if tls.certificate_file is not None:
                context.load_cert_chain(tls.certificate_file, tls.key_file)
        except (OSError, ValueError) as error:
            raise BadRequestError(f"{tls!r} cannot be used: {error}") from error
    context.set_alpn_protocols(["http/1.1"])  # httpx sets its own
    return context
