"""The transports: they send bytes, raise typed errors, and leave decisions to sessions. Loaded on first use."""

from __future__ import annotations

from types import ModuleType

from segserve.calls.steps import TransportName
from segserve.errors import MissingExtraError
from segserve.transports.base import AsyncTransport, Connection, Transport
from segserve_common.errors import BadRequestError


def open_transport(name: TransportName, connection: Connection) -> Transport:
    """Return a transport for threads.

    Raises `MissingExtraError` without the extra `grpc`, and `BadRequestError` for an unknown name.
    """
    module = _module(name)
    transport: Transport = (module.HttpTransport if name == "http" else module.GrpcTransport)(connection)
    return transport


def open_async_transport(name: TransportName, connection: Connection) -> AsyncTransport:
    """Return a transport for the tasks of an event loop; raises as `open_transport` does."""
    module = _module(name)
    transport: AsyncTransport = (module.AsyncHttpTransport if name == "http" else module.AsyncGrpcTransport)(connection)
    return transport


def _module(name: str) -> ModuleType:
    if name == "http":
        from segserve.transports import http

        return http
    if name != "grpc":
        raise BadRequestError(f"transport must be http or grpc, got {name!r}")
    try:
        from segserve.transports import grpc
    except ImportError as error:
        raise MissingExtraError(
            f"transport grpc needs packages that are not installed ({error}): pip install 'segserve[grpc]'"
        ) from error
    return grpc
