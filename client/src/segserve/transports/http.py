"""HTTP: KServe v2 with Triton's binary tensors, over httpx."""

from __future__ import annotations

import json
import os
import ssl
import time
from functools import lru_cache
from gzip import compress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx

from segserve.calls.answers import REVISION_HEADER, read_model_info, read_pixel_format
from segserve.calls.retry_after import retry_after_s
from segserve.calls.session import ConfigRequest
from segserve.errors import MissingExtraError, http_error
from segserve.results.pixels import PIXELS
from segserve.transports.deadlines import late, whole_time
from segserve.transports.http_errors import phase_timeouts, typed_errors
from segserve.transports.pool import LIMITS, AsyncLanes, Lanes
from segserve.transports.processes import check_process
from segserve_common.errors import BadRequestError, ProtocolError
from segserve_common.kserve import HEADER_LENGTH, decode_http, encode_http, json_object, model_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve.calls.endpoint import Endpoint
    from segserve.calls.session import Send
    from segserve.results.base import ModelInfo, PixelFormat
    from segserve.transports import Connection
    from segserve_common.kserve import InferAnswer, InferRequest

Arguments: TypeAlias = dict[str, Any]

# Triton compresses for whoever accepts it, which costs more than sending what is mostly PNG and RLE: the client accepts
# it where it is told to. An array of pixels is worth it from here on.
GZIP_BYTES: Final = 16 * 1024
GZIP_LEVEL: Final = 1
# A body is handed over in such pieces, between which the time is looked at.
PIECE_BYTES: Final = 2**20


class SyncTransport:
    """One pool of connections for all threads; a forked child makes its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open()

    def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send it and read the answer; a body that trickles in or out is given up at the deadline too."""
        if self._process != os.getpid():
            self._open()
        deadline = time.monotonic() + step.timeout_s
        connection, chunks = self._connection, []
        arguments = to_http(step.request, gzip=connection.gzip)
        arguments["url"] = _absolute(connection.endpoint, arguments["url"])
        arguments["headers"] |= {**step.headers, **connection.credentials.headers()}
        if "content" in arguments:
            arguments["content"] = _pieces(arguments, connection.endpoint, step, deadline)
        timeouts = phase_timeouts(step)
        with (
            typed_errors(connection.endpoint, step),
            self._lanes.lane(timeouts["pool"]) as client,
            client.stream(**arguments, extensions={"timeout": timeouts}) as response,
        ):
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise late(connection.endpoint, step)
        return from_http(step.request, response.status_code, response.headers, b"".join(chunks))

    def close(self) -> None:
        """Close the connections."""
        self._lanes.close()

    def _open(self) -> None:
        arguments = _client_arguments(self._connection)
        self._lanes = Lanes(lambda: httpx.Client(**arguments), shared=self._connection.http2)
        self._process = os.getpid()


class AsyncTransport:
    """One pool of connections for all tasks of an event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        arguments = _client_arguments(connection)
        self._lanes = AsyncLanes(lambda: httpx.AsyncClient(**arguments), shared=connection.http2)
        self._process = os.getpid()

    async def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Send it and read the answer."""
        check_process(self._process)
        connection = self._connection
        arguments = to_http(step.request, gzip=connection.gzip)
        arguments["url"] = _absolute(connection.endpoint, arguments["url"])
        timeouts = phase_timeouts(step)
        async with whole_time(connection.endpoint, step):
            arguments["headers"] |= {**step.headers, **await connection.credentials.async_headers()}
            with typed_errors(connection.endpoint, step):
                async with self._lanes.lane(timeouts["pool"]) as client:
                    response = await client.request(**arguments, extensions={"timeout": timeouts})
        return from_http(step.request, response.status_code, response.headers, response.content)

    async def close(self) -> None:
        """Close the connections."""
        await self._lanes.close()


def to_http(request: ConfigRequest | InferRequest, *, gzip: bool = False) -> Arguments:
    """Return method, URL, headers and content of a request; with `gzip` arrays of pixels are compressed."""
    path = model_path(request.model)
    if isinstance(request, ConfigRequest):
        return {"method": "GET", "url": f"{path}/config", "headers": {}}
    headers, body = encode_http(request)
    if gzip and len(body) > GZIP_BYTES and any(tensor.name == PIXELS for tensor in request.inputs):
        headers["Content-Encoding"], body = "gzip", compress(body, GZIP_LEVEL)
    return {"method": "POST", "url": f"{path}/infer", "headers": headers, "content": body}


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
        return _config(request.model, json_object(body))
    return decode_http(body, headers.get(HEADER_LENGTH))


@lru_cache(maxsize=4096)
def _absolute(endpoint: Endpoint, path: str) -> httpx.URL:
    """Return the URL of a path, parsed once: httpx would parse one three times for each request."""
    return httpx.URL(endpoint.url + path)


def _pieces(arguments: Arguments, endpoint: Endpoint, step: Send, deadline: float) -> bytes | Iterator[bytes]:
    """Return a body as it is, or where it is large in pieces, so that a slow way out ends at the deadline too."""
    body: bytes = arguments["content"]
    if len(body) <= PIECE_BYTES:
        return body
    # With its length known it is not sent in chunks of HTTP's.
    arguments["headers"]["Content-Length"] = str(len(body))
    return _until(deadline, body, endpoint, step)


def _until(deadline: float, body: bytes, endpoint: Endpoint, step: Send) -> Iterator[bytes]:
    whole = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        if time.monotonic() > deadline:
            raise late(endpoint, step)
        yield whole[start : start + PIECE_BYTES]  # type: ignore[misc]


def _config(model: str, config: Mapping[str, Any]) -> ModelInfo:
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
    return read_model_info(model, names, texts, _pixels(config.get("input")))


def _pixels(inputs: object) -> PixelFormat | None:
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


def _client_arguments(connection: Connection) -> Arguments:
    endpoint, http2 = connection.endpoint, connection.http2
    if http2 and find_spec("h2") is None:
        raise MissingExtraError("http2 needs a package that is not installed: pip install 'segserve[http2]'")
    return {
        "headers": {"Accept-Encoding": "gzip" if connection.gzip else "identity"},
        "trust_env": not endpoint.is_loopback,
        # One for all clients: making it takes longer than a request.
        "verify": _tls_context(connection),
        "http2": http2,
        # Without TLS nobody negotiates: the server is taken to know HTTP/2, as Envoy does.
        "http1": not (http2 and endpoint.scheme == "http"),
        "limits": LIMITS,
    }


def _tls_context(connection: Connection) -> ssl.SSLContext:
    tls = connection.tls
    if connection.endpoint.scheme == "http":
        # There is no TLS on this way. Reading all authorities would take longer than some calls, so nobody is trusted.
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
