"""The transports: they send bytes and raise typed errors, and decide nothing. Imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from segserve.errors import BadRequestError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

    from segserve.endpoint import Endpoint
    from segserve.session import ConfigRequest
    from segserve.types import ModelInfo
    from segserve.wire import InferAnswer, InferRequest

TransportName: TypeAlias = Literal["http", "grpc"]


class Transport(Protocol):
    """Sends requests of many threads over connections that it keeps."""

    def send(self, request: ConfigRequest | InferRequest, timeout_s: float) -> ModelInfo | InferAnswer:
        """Return the answer within `timeout_s`, or raise a `SegserveError`."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AsyncTransport(Protocol):
    """Sends requests of many tasks of one event loop over connections that it keeps."""

    async def send(self, request: ConfigRequest | InferRequest, timeout_s: float) -> ModelInfo | InferAnswer:
        """Return the answer within `timeout_s`, or raise a `SegserveError`."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def open_transport(name: TransportName, endpoint: Endpoint) -> Transport:
    """Return the transport of that name; `MissingExtraError` where its packages are not installed."""
    transport: Transport = _module(name).SyncTransport(endpoint)
    return transport


def open_async_transport(name: TransportName, endpoint: Endpoint) -> AsyncTransport:
    """Return the asynchronous transport of that name; raises as `open_transport` does."""
    transport: AsyncTransport = _module(name).AsyncTransport(endpoint)
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
