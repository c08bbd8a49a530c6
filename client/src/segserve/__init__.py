"""The Python client of segserve: images in, typed segmentations out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from segserve.async_client import AsyncClient
    from segserve.client import Client
    from segserve.detections import DetectionResult, KeypointDetection, KeypointResult
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
    from segserve.instances import Instance, InstanceResult
    from segserve.objects import Detection
    from segserve.panoptic import PanopticResult, PanopticSegment
    from segserve.results import Result
    from segserve.semantic import SemanticResult
    from segserve.types import ModelInfo, SegmentClass

__all__ = [
    "AsyncClient",
    "BadRequestError",
    "Client",
    "Detection",
    "DetectionResult",
    "GatewayUnreachableError",
    "Instance",
    "InstanceResult",
    "KeypointDetection",
    "KeypointResult",
    "MissingExtraError",
    "ModelInfo",
    "ModelNotFoundError",
    "OverloadedError",
    "PanopticResult",
    "PanopticSegment",
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
    "Detection": "objects",
    "DetectionResult": "detections",
    "Instance": "instances",
    "InstanceResult": "instances",
    "KeypointDetection": "detections",
    "KeypointResult": "detections",
    "ModelInfo": "types",
    "PanopticResult": "panoptic",
    "PanopticSegment": "panoptic",
    "Result": "results",
    "SegmentClass": "types",
    "SemanticResult": "semantic",
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
