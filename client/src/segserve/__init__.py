"""The Python client of segserve: images in, typed segmentations out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from segserve.async_client import AsyncClient
    from segserve.client import Client
    from segserve.errors import (
        BadRequestError,
        GatewayUnreachableError,
        MissingExtraError,
        ModelNotFoundError,
        OverloadedError,
        ProtocolError,
        RequestTimeoutError,
        RequestTooLargeError,
        SegserveError,
        ServerError,
    )
    from segserve.types import Instance, InstanceResult, ModelInfo, Result, SegmentClass, SemanticResult

__all__ = [
    "AsyncClient",
    "BadRequestError",
    "Client",
    "GatewayUnreachableError",
    "Instance",
    "InstanceResult",
    "MissingExtraError",
    "ModelInfo",
    "ModelNotFoundError",
    "OverloadedError",
    "ProtocolError",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "Result",
    "SegmentClass",
    "SegserveError",
    "SemanticResult",
    "ServerError",
]

_HOMES: Final = {
    "AsyncClient": "async_client",
    "Client": "client",
    "Instance": "types",
    "InstanceResult": "types",
    "ModelInfo": "types",
    "Result": "types",
    "SegmentClass": "types",
    "SemanticResult": "types",
}


def __getattr__(name: str) -> Any:
    # The command line imports this package for every command, numpy and httpx are only for some.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
