"""Our own requests to one group's servers, through the gateway's internal listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias
from uuid import uuid4

import httpx
import numpy as np
from numpy.typing import NDArray

from segserve_common.errors import SegserveError
from segserve_common.http.guard import body_within
from segserve_common.http.urls import RequestError
from segserve_common.kserve import (
    BYTES,
    HEADER_LENGTH,
    InferRequest,
    Parameter,
    Tensor,
    decode_http,
    encode_http,
    model_path,
)
from segserve_operator.adapters.traffic.envoy_admin import internal_client
from segserve_operator.core.gates.checks import CheckError

OutputArrays: TypeAlias = dict[str, NDArray[Any]]

GROUP_HEADER: Final = "x-segserve-group"
HEADERS: Final = {"Accept-Encoding": "identity"}
CONNECT_S: Final = 5.0
MAX_BYTES: Final = 2**20
MAX_CLIENTS: Final = 16
"""Gateways come and go: connections to at most this many are kept."""

_NO_ROUTE: Final = 404


class NotAnsweredError(Exception):
    """The group's servers failed a request."""


class InternalGateway:
    """One pool's gateway. `url` returns the current address of the internal listener, as the Traffic port does."""

    def __init__(self, url: Callable[[], Awaitable[str | None]]) -> None:
        self._url = url
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def close(self) -> None:
        """Close the connections."""
        for address in tuple(self._clients):
            await self._clients.pop(address).aclose()

    async def infer(
        self, model: str, group: str, revision: str, image: bytes, parameters: Mapping[str, Parameter], timeout_s: float
    ) -> OutputArrays:
        """Return all outputs of one encoded image, BYTES as arrays of bytes objects; none of an answer above 1 MiB.

        Raises `NotAnsweredError` if the servers fail it, and `CheckError` if it does not reach them: the gateway cannot
        be reached, has no such group, or has another revision there.
        """
        # A stream of one frame: models of videos need it, and others ignore it.
        frame: dict[str, Parameter] = {
            "sequence_id": f"segserve-{uuid4()}",
            "sequence_start": True,
            "sequence_end": True,
        }
        request = InferRequest(model, (Tensor.of_items("IMAGE", [image]),), (), {**frame, **parameters})
        headers, body = encode_http(request)
        headers = {**headers, **HEADERS, GROUP_HEADER: group}
        client = await self._client()
        try:
            async with client.stream(
                "POST", f"{model_path(model)}/infer", headers=headers, content=body, timeout=timeout_s
            ) as reply:
                content = await _content(reply)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CheckError(f"the gateway's internal listener cannot be reached: {error}") from error
        except httpx.TimeoutException:
            raise NotAnsweredError(f"no answer within {timeout_s:.3g} s") from None
        except httpx.TransportError as error:
            raise CheckError(f"the gateway closed the connection: {error or type(error).__name__}") from error
        return {} if content is None else _read(reply, content, group, revision)

    async def _client(self) -> httpx.AsyncClient:
        address = await self._url()
        if address is None:
            raise CheckError("no gateway accepts requests now")
        if address not in self._clients:
            if len(self._clients) >= MAX_CLIENTS:
                await self.close()
            self._clients[address] = internal_client(address, timeout_s=CONNECT_S)
        return self._clients[address]


async def _content(reply: httpx.Response) -> bytes | None:
    """Return an answer, None if it is too large to be read: a pool's servers answer with what they like."""
    try:
        return await body_within(reply, MAX_BYTES)
    except RequestError as error:
        if reply.status_code == httpx.codes.OK:
            return None
        raise NotAnsweredError(f"{reply.status_code}: {error}") from error


def _read(reply: httpx.Response, content: bytes, group: str, revision: str) -> OutputArrays:
    text = content[:300].decode(errors="replace")
    if reply.status_code == _NO_ROUTE:
        raise CheckError(text)
    if reply.status_code != httpx.codes.OK:
        raise NotAnsweredError(f"{reply.status_code}: {text}")
    try:
        outputs = decode_http(content, reply.headers.get(HEADER_LENGTH)).outputs
        answer = {name: _array(tensor) for name, tensor in outputs.items()}
    except SegserveError as error:
        raise NotAnsweredError(str(error)) from error
    revisions = [bytes(name).decode(errors="replace") for name in answer.get("REVISION", ())]
    if revisions and revisions != [revision]:
        raise CheckError(f"group {group} answers with the revision {revisions[0]!r}; expected {revision!r}")
    return answer


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.datatype != BYTES:
        return tensor.to_array()
    return np.array(tensor.to_items(), dtype=np.object_).reshape(tensor.shape)
