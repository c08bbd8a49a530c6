"""Asks one group the copy of a request, through the gateway's internal listener."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import httpx

from segserve_builder.copies.copies import HEADER_LENGTH, MODEL_INFER, RequestCopy
from segserve_builder.spec.names import FLAGGED_WORDS

TIMEOUT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 16 * 2**20
"""Larger answers are counted and not compared."""
GRPC_FAULTS: Final = frozenset({2, 4, 8, 13, 14, 15})
"""As the gateway counts them: unknown, deadline exceeded, resource exhausted, internal, unavailable, data loss."""
_GROUP_HEADER: Final = "x-segserve-group"
_UNIX_SCHEME: Final = "unix:"
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
# The gateway answers 404 for an unknown group, which gRPC turns into the first.
_GRPC_NOT_FOUND: Final = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
_TOO_LARGE: Final = "larger than max"
_NOT_CONNECTED: Final = "failed to connect"
"""Parts of what gRPC itself says, without a word from the gateway."""
_CHANNEL: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.enable_http_proxy", 0),
    # What is retried fails less than callers see; a gateway that starts again must be found at once.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # So long a connection may take: on a busy machine both ends wait for a core. It is less than a request may take, as
    # a gateway that is not reached says nothing about a group.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class AnswerKind(Enum):
    """How a group took a request."""

    ANSWERED = auto()
    REFUSED = auto()
    """The caller's error, as the group sees it."""
    FAILED = auto()
    HUNG = auto()
    UNREACHED = auto()
    """The gateway is not there, or has no such group."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer after `seconds`, from before its request was sent to its last byte.

    `content` is its body or message, None if it failed or is larger than `MAX_ANSWER_BYTES`. has_latency: a
    server answered, if only with an error. is_flagged: it is refused because the model refuses images that are out of
    distribution.
    """

    kind: AnswerKind
    seconds: float
    content: bytes | None = None
    header_length: str = ""
    has_latency: bool = True
    is_flagged: bool = False


class AskGroup(Protocol):
    """Sends a copy to a group, by its name, as `GroupClient.ask` does."""

    async def __call__(self, copy: RequestCopy, group: str) -> Answer:
        """Return how the group answers."""


class GroupClient:
    """Connections to the gateway's internal listener at `url`: `http://host:port`, or `unix:` and a socket's path."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        # No TLS here; httpx would otherwise load the authorities of the machine.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        is_socket = url.startswith(_UNIX_SCHEME)
        transport = httpx.AsyncHTTPTransport(
            uds=url.removeprefix(_UNIX_SCHEME) if is_socket else None, verify=context, limits=limits
        )
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://gateway" if is_socket else url, timeout=None, trust_env=False
        )
        address = url if is_socket else httpx.URL(url).netloc.decode("ascii")
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL)
        self._infer: Any = self._channel.unary_unary(MODEL_INFER)

    async def close(self) -> None:
        """Close the connections; requests under way end."""
        await self._http.aclose()
        await self._channel.close()

    async def ask(self, copy: RequestCopy, group: str) -> Answer:
        """Return how a group answers."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                if copy.protocol == "grpc":
                    try:
                        content = await self._infer(copy.body, metadata=((_GROUP_HEADER, group),))
                    except grpc.aio.AioRpcError as error:
                        seconds = time.perf_counter() - began_s
                        details = error.details() or ""
                        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
                            return Answer(AnswerKind.ANSWERED, seconds)
                        if error.code() is grpc.StatusCode.UNAVAILABLE and _NOT_CONNECTED in details:
                            return Answer(AnswerKind.UNREACHED, seconds, has_latency=False)
                        return Answer(_grpc_kind(error.code()), seconds, is_flagged=FLAGGED_WORDS in details)
                    return Answer(AnswerKind.ANSWERED, time.perf_counter() - began_s, content)
                return await self._ask_http(copy, group, began_s)
        except TimeoutError:
            return Answer(AnswerKind.HUNG, time.perf_counter() - began_s, has_latency=False)

    async def _ask_http(self, copy: RequestCopy, group: str, began_s: float) -> Answer:
        headers = {"accept-encoding": "identity", _GROUP_HEADER: group}
        headers |= {"content-type": copy.content_type} if copy.content_type else {}
        headers |= {HEADER_LENGTH: copy.header_length} if copy.header_length else {}
        # The target as it came: httpx would normalise it.
        target = {"target": copy.target.encode("latin-1")}
        body, is_kept = bytearray(), True
        try:
            request = self._http.build_request("POST", "/", headers=headers, content=copy.body, extensions=target)
            reply = await self._http.send(request, stream=True)
            is_ok = reply.status_code == httpx.codes.OK
            try:
                async for chunk in reply.aiter_raw():
                    # The rest is received, for its time, but not held.
                    is_kept = is_kept and len(body) + len(chunk) <= MAX_ANSWER_BYTES
                    if is_kept:
                        body += chunk
            finally:
                await reply.aclose()
        except httpx.ConnectError:
            return Answer(AnswerKind.UNREACHED, time.perf_counter() - began_s, has_latency=False)
        except httpx.HTTPError:
            return Answer(AnswerKind.FAILED, time.perf_counter() - began_s, has_latency=False)
        seconds = time.perf_counter() - began_s
        if not is_ok:
            is_flagged = FLAGGED_WORDS.encode() in body
            return Answer(_http_kind(reply.status_code), seconds, is_flagged=is_flagged)
        content = bytes(body) if is_kept else None
        return Answer(AnswerKind.ANSWERED, seconds, content, reply.headers.get(HEADER_LENGTH, ""))


def _http_kind(status: int) -> AnswerKind:
    if status == _NOT_FOUND:
        return AnswerKind.UNREACHED
    return AnswerKind.FAILED if status >= _SERVER_ERROR else AnswerKind.REFUSED


def _grpc_kind(code: grpc.StatusCode) -> AnswerKind:
    if code in _GRPC_NOT_FOUND:
        return AnswerKind.UNREACHED
    return AnswerKind.FAILED if code.value[0] in GRPC_FAULTS else AnswerKind.REFUSED
