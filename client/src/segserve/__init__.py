"""The Python client of segserve: images in, typed segmentations out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from segserve.async_client import AsyncClient
    from segserve.calls.credentials import Tls
    from segserve.calls.hooks import ErrorEvent, Hooks, RequestEvent, ResponseEvent, RetryEvent
    from segserve.calls.many import Failure
    from segserve.calls.prompts import Box, Click
    from segserve.calls.steps import Timeouts
    from segserve.client import Client
    from segserve.errors import (
        AnswerTooLargeError,
        AuthenticationError,
        ConnectionLostError,
        ConnectTimeoutError,
        DatasetError,
        DeadlineExceededError,
        EmbeddingLostError,
        EventLoopError,
        ForkedClientError,
        GatewayUnreachableError,
        ImageTooLargeError,
        MissingExtraError,
        ModelNotFoundError,
        OutOfDistributionError,
        OverloadedError,
        PermissionDeniedError,
        PlainHttpCredentialsError,
        PoolTimeoutError,
        RateLimitError,
        ReadTimeoutError,
        RequestTimeoutError,
        RequestTooLargeError,
        ResultTypeError,
        ServerError,
        StepDiedError,
        TlsError,
        WriteTimeoutError,
    )
    from segserve.platform import Cluster, Local
    from segserve.prompted import AsyncPromptedImage, PromptedImage
    from segserve.results.objects import (
        Detection,
        DetectionResult,
        Instance,
        InstanceResult,
        KeypointDetection,
        KeypointResult,
    )
    from segserve.results.result import PanopticResult, PanopticSegment, Result, SemanticResult
    from segserve.results.values import ModelInfo, OutOfDistribution, SegmentClass
    from segserve_common.errors import BadRequestError, ProtocolError, SegserveError
    from segserve_platform.evaluation.report import EvaluationReport
    from segserve_platform.evaluation.running import evaluate
    from segserve_platform.platforms.errors import (
        ConflictError,
        ControlError,
        ForbiddenError,
        InvalidResourceError,
        NoPlatformError,
        NotFoundError,
        NotInstalledError,
        NotServingError,
        PlatformUnreachableError,
        WaitTimeoutError,
    )

__all__ = [
    "AnswerTooLargeError",
    "AsyncClient",
    "AsyncPromptedImage",
    "AuthenticationError",
    "BadRequestError",
    "Box",
    "Click",
    "Client",
    "Cluster",
    "ConflictError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "ControlError",
    "DatasetError",
    "DeadlineExceededError",
    "Detection",
    "DetectionResult",
    "EmbeddingLostError",
    "ErrorEvent",
    "EvaluationReport",
    "EventLoopError",
    "Failure",
    "ForbiddenError",
    "ForkedClientError",
    "GatewayUnreachableError",
    "Hooks",
    "ImageTooLargeError",
    "Instance",
    "InstanceResult",
    "InvalidResourceError",
    "KeypointDetection",
    "KeypointResult",
    "Local",
    "MissingExtraError",
    "ModelInfo",
    "ModelNotFoundError",
    "NoPlatformError",
    "NotFoundError",
    "NotInstalledError",
    "NotServingError",
    "OutOfDistribution",
    "OutOfDistributionError",
    "OverloadedError",
    "PanopticResult",
    "PanopticSegment",
    "PermissionDeniedError",
    "PlainHttpCredentialsError",
    "PlatformUnreachableError",
    "PoolTimeoutError",
    "PromptedImage",
    "ProtocolError",
    "RateLimitError",
    "ReadTimeoutError",
    "RequestEvent",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "ResponseEvent",
    "Result",
    "ResultTypeError",
    "RetryEvent",
    "SegmentClass",
    "SegserveError",
    "SemanticResult",
    "ServerError",
    "StepDiedError",
    "Timeouts",
    "Tls",
    "TlsError",
    "WaitTimeoutError",
    "WriteTimeoutError",
    "evaluate",
]

_HOMES: Final = {
    "AsyncClient": ".async_client",
    "AsyncPromptedImage": ".prompted",
    "Box": ".calls.prompts",
    "Click": ".calls.prompts",
    "Client": ".client",
    "Cluster": ".platform",
    "ConflictError": "segserve_platform.platforms.errors",
    "ControlError": "segserve_platform.platforms.errors",
    "Detection": ".results.objects",
    "DetectionResult": ".results.objects",
    "ErrorEvent": ".calls.hooks",
    "EvaluationReport": "segserve_platform.evaluation.report",
    "Failure": ".calls.many",
    "ForbiddenError": "segserve_platform.platforms.errors",
    "Hooks": ".calls.hooks",
    "Instance": ".results.objects",
    "InstanceResult": ".results.objects",
    "InvalidResourceError": "segserve_platform.platforms.errors",
    "KeypointDetection": ".results.objects",
    "KeypointResult": ".results.objects",
    "Local": ".platform",
    "ModelInfo": ".results.values",
    "NoPlatformError": "segserve_platform.platforms.errors",
    "NotFoundError": "segserve_platform.platforms.errors",
    "NotInstalledError": "segserve_platform.platforms.errors",
    "NotServingError": "segserve_platform.platforms.errors",
    "OutOfDistribution": ".results.values",
    "PanopticResult": ".results.result",
    "PanopticSegment": ".results.result",
    "PlatformUnreachableError": "segserve_platform.platforms.errors",
    "PromptedImage": ".prompted",
    "RequestEvent": ".calls.hooks",
    "ResponseEvent": ".calls.hooks",
    "Result": ".results.result",
    "RetryEvent": ".calls.hooks",
    "SegmentClass": ".results.values",
    "SemanticResult": ".results.result",
    "Timeouts": ".calls.steps",
    "Tls": ".calls.credentials",
    "WaitTimeoutError": "segserve_platform.platforms.errors",
    "evaluate": "segserve_platform.evaluation.running",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("segserve")
    # The command line imports this package for every command, numpy and httpx are only for some.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, ".errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
