"""Every error the client raises on purpose, and the one place that maps a status to its class."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

TRITON_PREFIXES: Final = re.compile(r"^(?:in ensemble '[^']*', |\[request id: [^\]]*\] )+")


class SegserveError(Exception):
    """A request that was not answered.

    `status` is what the server said: an HTTP status as int, a gRPC status name as str, None where it said
    nothing. `model` and `revision` are None where they are not known; `retry_after_s` is what the server
    asked for.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | str | None = None,
        model: str | None = None,
        revision: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = TRITON_PREFIXES.sub("", message).strip()
        self.status = status
        self.model = model
        self.revision = revision
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type[SegserveError], tuple[str], dict[str, object]]:
        return type(self), (self.message,), self.__dict__.copy()


class BadRequestError(SegserveError):
    """An image or parameter that cannot be used (400, INVALID_ARGUMENT; None where nothing was sent)."""


class ModelNotFoundError(SegserveError):
    """No model of that name is served (404, NOT_FOUND)."""


class RequestTooLargeError(SegserveError):
    """The gateway takes no request of that size (413, RESOURCE_EXHAUSTED)."""


class OverloadedError(SegserveError):
    """No server can take the request now (503, 429, UNAVAILABLE)."""

    retryable = True


class ServerError(SegserveError):
    """The server failed (500 and above, INTERNAL, UNKNOWN)."""


class GatewayUnreachableError(SegserveError):
    """Nothing listens at the URL, or the connection broke."""

    retryable = True


class RequestTimeoutError(SegserveError):
    """No answer within the time given (408, 504, DEADLINE_EXCEEDED)."""


class ProtocolError(SegserveError):
    """An answer that is not one: truncated, contradictory, or not of this protocol."""


class MissingExtraError(SegserveError):
    """A part of the client that is not installed."""


HTTP_ERRORS: Final[dict[int, type[SegserveError]]] = {
    404: ModelNotFoundError,
    408: RequestTimeoutError,
    413: RequestTooLargeError,
    429: OverloadedError,
    503: OverloadedError,
    504: RequestTimeoutError,
}

GRPC_ERRORS: Final[dict[str, type[SegserveError]]] = {
    "INVALID_ARGUMENT": BadRequestError,
    "FAILED_PRECONDITION": BadRequestError,
    "OUT_OF_RANGE": BadRequestError,
    "UNAUTHENTICATED": BadRequestError,
    "PERMISSION_DENIED": BadRequestError,
    "NOT_FOUND": ModelNotFoundError,
    # What a gRPC library makes of a bare HTTP 404, which is how a gateway refuses a name it does not route.
    "UNIMPLEMENTED": ModelNotFoundError,
    "RESOURCE_EXHAUSTED": RequestTooLargeError,
    "UNAVAILABLE": OverloadedError,
    "DEADLINE_EXCEEDED": RequestTimeoutError,
}


def http_error(status: int, message: str, **known: Any) -> SegserveError:
    """Return the error that an HTTP status other than 200 stands for; `known` goes to its constructor."""
    kind = HTTP_ERRORS.get(status)
    if kind is None:
        kind = ServerError if status >= 500 else BadRequestError if status >= 400 else ProtocolError
    return kind(message or f"HTTP status {status}", status=status, **known)


def grpc_error(status: str, message: str, **known: Any) -> SegserveError:
    """Return the error that the name of a gRPC status stands for; `known` goes to its constructor."""
    kind = GRPC_ERRORS.get(status, ServerError)
    return kind(message or f"gRPC status {status}", status=status, **known)
