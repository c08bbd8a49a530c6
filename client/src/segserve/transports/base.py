"""The common parts of both transports: connection settings, deadlines, and checks before a request is sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from segserve.calls.credentials import Credentials, Tls
from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import Send
from segserve.errors import AnswerTooLargeError, DeadlineExceededError, EventLoopError, ForkedClientError
from segserve.results.values import ModelInfo
from segserve_common.errors import BadRequestError
from segserve_common.kserve import InferAnswer

MAX_ANSWER_BYTES: Final = 256 * 2**20
"""The default bound: twice the label map of an image of 128 megapixels, uncompressed."""


PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_TLS_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")

Phase: TypeAlias = Literal["pool", "connect", "write", "read"]


class ExchangeError(Exception):
    """A phase of an exchange over HTTP failed, or made no progress within its timeout."""

    def __init__(self, phase: Phase, cause: str = "", *, timed_out: bool = False) -> None:
        super().__init__(cause)
        self.phase, self.timed_out = phase, timed_out


@dataclass(frozen=True, slots=True)
class Connection:
    """The gateway, the credentials and the protocol options of a transport; `http2` and `gzip` apply to HTTP only."""

    endpoint: GatewayEndpoint
    credentials: Credentials = field(default_factory=Credentials)
    tls: Tls | None = None
    http2: bool = False
    gzip: bool = False
    max_answer_bytes: int = MAX_ANSWER_BYTES

    def __post_init__(self) -> None:
        limit = self.max_answer_bytes
        if not isinstance(limit, int) or not 0 < limit < 2**31:
            raise BadRequestError(f"max_answer_bytes must be a whole number from 1 to {2**31 - 1}, got {limit!r}")
        if not isinstance(self.tls, Tls | None):
            raise BadRequestError(f"tls must be a segserve.Tls, got {type(self.tls).__name__}")
        if self.tls is not None and self.endpoint.scheme != "https":
            raise BadRequestError(f"tls needs an https gateway, got {self.endpoint.url!r}")


class Transport(Protocol):
    """Sends requests from many threads over kept connections."""

    def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Return the answer within the step's timeout, or raise a `SegserveError`."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Sends requests from many tasks of one event loop over kept connections."""

    async def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Return the answer within the step's timeout, or raise a `SegserveError`."""

    async def close(self) -> None:
        """Close the connections."""


@asynccontextmanager
async def deadline(endpoint: GatewayEndpoint, step: Send) -> AsyncIterator[None]:
    """Cancel the block with a `DeadlineExceededError` when the step's timeout has passed."""
    try:
        async with asyncio.timeout(step.timeout_s) as timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise  # raised by a bearer token's function
        raise deadline_exceeded(endpoint, step) from error


def deadline_exceeded(endpoint: GatewayEndpoint, step: Send) -> DeadlineExceededError:
    """Return the error of a request whose timeout has passed."""
    seconds = step.timeouts.total_s  # of all attempts: what was left for the last one says nothing
    duration = f"{seconds:.3g} s" if seconds >= 0.9995 else f"{max(round(seconds * 1000), 1)} ms"
    return DeadlineExceededError(f"request to {endpoint.url} timed out after {duration}")


@contextmanager
def environment_errors() -> Iterator[None]:
    """Turn what httpx raises as it reads the environment into a `BadRequestError` that names the variables."""
    try:
        yield
    except Exception as error:  # ImportError, ValueError, OSError and ssl.SSLError, httpx.InvalidURL
        of_tls = isinstance(error, OSError)
        names = [each for each in os.environ if each.upper() in (_TLS_VARIABLES if of_tls else PROXY_VARIABLES)]
        raise BadRequestError(
            f"the client cannot use the environment's {', '.join(names) or 'settings'}: {str(error).rstrip('.')}; "
            "correct or unset them (NO_PROXY takes hosts, and addresses of IPv6 without brackets)"
        ) from error


def answer_too_large(endpoint: GatewayEndpoint, seen: str, limit: int) -> AnswerTooLargeError:
    """Return the error of an answer that is larger than the client allows."""
    return AnswerTooLargeError(
        f"{endpoint.url} answers with {seen}, more than the {limit} that are allowed: ask for less "
        "(encoding rle or png, tiles), or allow more (max_answer_bytes)"
    )


def check_process(made_in: int) -> None:
    """Raise `ForkedClientError` in any process except the one that made the connections."""
    if made_in != os.getpid():
        raise ForkedClientError(
            f"this client was made in process {made_in} and is used in its fork {os.getpid()}: "
            "make one after the fork, or use the start method spawn"
        )


def check_loop(used: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """Return the running event loop; raises `EventLoopError` if it is another one than the connections are of."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError as error:
        raise EventLoopError("AsyncClient needs asyncio: under trio, use Client in a thread (to_thread)") from error
    if used not in (None, running):
        raise EventLoopError(
            "this AsyncClient was used in another event loop, to which its connections belong: make one in each "
            "(asyncio.run() starts a new loop every time), or use Client"
        )
    return running


def check_open(closed: bool) -> None:
    """Raise `BadRequestError` if the connections were closed."""
    if closed:
        raise BadRequestError("the client is closed")
