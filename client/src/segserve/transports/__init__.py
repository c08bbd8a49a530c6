"""The transports: they send bytes and raise typed errors, and decide nothing. Imported when first used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from segserve.calls.credentials import Credentials
from segserve.errors import MissingExtraError
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from types import ModuleType

    from segserve.calls.credentials import Tls
    from segserve.calls.endpoint import Endpoint
    from segserve.calls.session import Send
    from segserve.results.base import ModelInfo
    from segserve_common.kserve import InferAnswer

TransportName: TypeAlias = Literal["http", "grpc"]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a transport connects to, as whom, and how; `http2` and `gzip` are for HTTP alone."""

    endpoint: Endpoint
    credentials: Credentials = field(default_factory=Credentials)
    tls: Tls | None = None
    http2: bool = False
    gzip: bool = False

    def __post_init__(self) -> None:
        if self.tls is not None and self.endpoint.scheme != "https":
            raise BadRequestError(f"tls is for an https gateway, got {self.endpoint.url!r}")


class Transport(Protocol):
    """Sends requests of many threads over connections that it keeps."""

    def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Return the answer within the step's time, or raise a `SegserveError`."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AsyncTransport(Protocol):
    """Sends requests of many tasks of one event loop over connections that it keeps."""

    async def send(self, step: Send) -> ModelInfo | InferAnswer:
        """Return the answer within the step's time, or raise a `SegserveError`."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def open_transport(name: TransportName, connection: Connection) -> Transport:
    """Return the transport of that name; `MissingExtraError` where its packages are not installed."""
    transport: Transport = _module(name).SyncTransport(connection)
    return transport


def open_async_transport(name: TransportName, connection: Connection) -> AsyncTransport:
    """Return the asynchronous transport of that name; raises as `open_transport` does."""
    transport: AsyncTransport = _module(name).AsyncTransport(connection)
    return transport


def _module(name: str) -> ModuleType:
    if name == "http":
        from segserve.transports import http

        return http
    if name != "grpc":
        raise BadRequestError(f"transport is http or grpc, got {name!r}")
    try:
        from segserve.transports import grpc
    except ImportError as error:
        raise MissingExtraError(
            f"transport grpc needs packages that are not installed ({error}): pip install 'segserve[grpc]'"
        ) from error
    return grpc
