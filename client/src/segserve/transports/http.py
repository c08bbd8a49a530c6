"""HTTP: KServe v2 with Triton's binary tensors, over httpx."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx

from segserve.answers import REVISION_HEADER, read_model_info
from segserve.errors import GatewayUnreachableError, ProtocolError, RequestTimeoutError, http_error
from segserve.session import ConfigRequest
from segserve.wire import HEADER_LENGTH, decode_http, encode_http, json_object, model_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve.endpoint import Endpoint
    from segserve.types import ModelInfo
    from segserve.wire import InferAnswer, InferRequest

Arguments: TypeAlias = dict[str, Any]

# Triton compresses for whoever accepts it, which costs more than sending what is mostly PNG and RLE.
HEADERS: Final = {"Accept-Encoding": "identity"}


class SyncTransport:
    """One pool of connections for all threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(**_client_arguments(endpoint))

    def send(self, request: ConfigRequest | InferRequest, timeout_s: float) -> ModelInfo | InferAnswer:
        """Send it and read the answer; a body that trickles in is given up at the deadline too."""
        deadline = time.monotonic() + timeout_s
        chunks = []
        with (
            typed_errors(self._endpoint, timeout_s),
            self._client.stream(**to_http(request), timeout=timeout_s) as response,
        ):
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise RequestTimeoutError(f"the answer was not complete after {timeout_s:.3g} s")
        return from_http(request, response.status_code, response.headers, b"".join(chunks))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncTransport:
    """One pool of connections for all tasks of an event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx.AsyncClient(**_client_arguments(endpoint))

    async def send(self, request: ConfigRequest | InferRequest, timeout_s: float) -> ModelInfo | InferAnswer:
        """Send it and read the answer."""
        with typed_errors(self._endpoint, timeout_s):
            async with asyncio.timeout(timeout_s):
                response = await self._client.request(**to_http(request), timeout=timeout_s)
        return from_http(request, response.status_code, response.headers, response.content)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def to_http(request: ConfigRequest | InferRequest) -> Arguments:
    """Return method, URL, headers and content of a request."""
    path = model_path(request.model)
    if isinstance(request, ConfigRequest):
        return {"method": "GET", "url": f"{path}/config"}
    headers, body = encode_http(request)
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
            retry_after_s=_seconds(headers.get("retry-after")),
        )
    if isinstance(request, ConfigRequest):
        return _config(request.model, json_object(body))
    return decode_http(body, headers.get(HEADER_LENGTH))


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
    return read_model_info(model, names, texts)


def _error_text(body: bytes) -> str:
    """Return Triton's `{"error": ...}`, or the beginning of a proxy's plain text."""
    try:
        match json.loads(body):
            case {"error": str(text)}:
                return text
    except (ValueError, RecursionError):
        pass
    return body[:300].decode(errors="replace").strip()


def _seconds(retry_after: str | None) -> float | None:
    # The other form, a date, is not worth a parser: the backoff stands in for it.
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


@contextmanager
def typed_errors(endpoint: Endpoint, timeout_s: float) -> Iterator[None]:
    """Turn httpx's errors into the client's."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise RequestTimeoutError(f"{endpoint.url} did not answer within {timeout_s:.3g} s") from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"an answer that cannot be decompressed: {error}") from error
    except httpx.TransportError as error:
        raise GatewayUnreachableError(f"cannot reach {endpoint.url}: {error or type(error).__name__}") from error


def _client_arguments(endpoint: Endpoint) -> Arguments:
    return {"base_url": endpoint.url, "headers": HEADERS, "trust_env": not endpoint.is_loopback}
