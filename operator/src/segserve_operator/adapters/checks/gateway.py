"""Our own requests to one group's servers, by the gateway's internal listener."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import httpx
import numpy as np

from segserve_common.errors import SegserveError
from segserve_common.kserve import BYTES, HEADER_LENGTH, InferRequest, Tensor, decode_http, encode_http, model_path
from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.traffic.envoy_admin import internal_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from numpy.typing import NDArray

    from segserve_common.kserve import Parameter

    Answer = dict[str, NDArray[Any]]

GROUP_HEADER: Final = "x-segserve-group"
HEADERS: Final = {"Accept-Encoding": "identity"}
CONNECT_S: Final = 5.0
ADDRESSES: Final = 16
"""Gateways come and go: the connections to so many are kept."""

_NO_WAY: Final = 404


class NotAnsweredError(Exception):
    """The group's servers failed a request. `passing` where another try may be answered."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class InternalGateway:
    """One pool's gateway. `url` returns the internal listener's address of now, as the Traffic port does."""

    def __init__(self, url: Callable[[], Awaitable[str | None]]) -> None:
        self._url = url
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def close(self) -> None:
        """Close the connections."""
        for address in tuple(self._clients):
            await self._clients.pop(address).aclose()

    async def infer(
        self, model: str, group: str, revision: str, image: bytes, parameters: Mapping[str, Parameter], timeout_s: float
    ) -> Answer:
        """Return all outputs of one encoded image; BYTES as arrays of bytes objects.

        Raises `NotAnsweredError` where the servers fail it, and `CheckError` where they were not asked: the gateway
        cannot be reached, knows no such group, or has another revision there.
        """
        # A stream of one frame, for models of videos that take nothing else; others do not look at it.
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
            reply = await client.post(f"{model_path(model)}/infer", headers=headers, content=body, timeout=timeout_s)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CheckError(f"the gateway's internal listener cannot be reached: {error}") from error
        except httpx.TimeoutException:
            raise NotAnsweredError(f"no answer within {timeout_s:.3g} s", passing=True) from None
        except httpx.TransportError as error:
            raise CheckError(f"the gateway broke off: {error or type(error).__name__}") from error
        return _read(reply, group, revision)

    async def _client(self) -> httpx.AsyncClient:
        address = await self._url()
        if address is None:
            raise CheckError("no gateway takes requests now")
        if address not in self._clients:
            if len(self._clients) >= ADDRESSES:
                await self.close()
            self._clients[address] = internal_client(address, timeout_s=CONNECT_S)
        return self._clients[address]


def _read(reply: httpx.Response, group: str, revision: str) -> Answer:
    if reply.status_code == _NO_WAY:
        raise CheckError(reply.text[:300])
    if reply.status_code != httpx.codes.OK:
        passing = reply.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
        raise NotAnsweredError(f"{reply.status_code}: {reply.text[:300]}", passing=passing)
    try:
        outputs = decode_http(reply.content, reply.headers.get(HEADER_LENGTH)).outputs
        answer = {name: _array(tensor) for name, tensor in outputs.items()}
    except SegserveError as error:
        raise NotAnsweredError(str(error)) from error
    seen = [bytes(name).decode(errors="replace") for name in answer.get("REVISION", ())]
    if seen and seen != [revision]:
        raise CheckError(f"group {group} answers with the revision {seen[0]!r}; {revision!r} is asked for")
    return answer


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.datatype != BYTES:
        return tensor.to_array()
    return np.array(tensor.to_items(), dtype=np.object_).reshape(tensor.shape)
