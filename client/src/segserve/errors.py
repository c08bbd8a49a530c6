"""Every error the client raises on purpose, and the one place that maps a status to its class."""

from __future__ import annotations

import re
from typing import Any, Final

from segserve_common.errors import BadRequestError as BadRequestError
from segserve_common.errors import ProtocolError as ProtocolError
from segserve_common.errors import SegserveError as SegserveError

# gRPC has one status for a message that is too large and for a caller that asks too often.
RATE_WORDS: Final = re.compile(r"rate.?limit|quota|too many requests", re.IGNORECASE)


class AuthenticationError(SegserveError):
    """No credentials, or ones that are not known (401, UNAUTHENTICATED)."""


class PermissionDeniedError(SegserveError):
    """Credentials that do not allow this (403, PERMISSION_DENIED)."""


class PlainHttpCredentialsError(SegserveError):
    """Credentials that anybody on the way could read: nothing was sent."""


class ModelNotFoundError(SegserveError):
    """No model of that name is served (404, NOT_FOUND)."""


class RequestTooLargeError(SegserveError):
    """The gateway takes no request of that size (413, RESOURCE_EXHAUSTED)."""


class OverloadedError(SegserveError):
    """No server can take the request now (503, UNAVAILABLE)."""

    retryable = True


class RateLimitError(OverloadedError):
    """This caller asks more than it may (429; RESOURCE_EXHAUSTED that names a rate or a quota)."""

    untouched = True


class ServerError(SegserveError):
    """The server failed (500 and above, INTERNAL, UNKNOWN)."""


class GatewayUnreachableError(SegserveError):
    """Nothing listens at the URL, or its name is not known."""

    retryable = True
    untouched = True


class TlsError(GatewayUnreachableError):
    """TLS came to no agreement: a certificate that is not trusted, or none where the gateway demands one."""

    retryable = False


class ConnectTimeoutError(GatewayUnreachableError):
    """No connection within the time for it, `Timeouts.connect_s`."""


class ConnectionLostError(GatewayUnreachableError):
    """The connection broke before the answer was whole."""

    untouched = False


class RequestTimeoutError(SegserveError):
    """No answer in time: the gateway's limit (408, 504, DEADLINE_EXCEEDED), or one of the client's (a subclass)."""


class DeadlineExceededError(RequestTimeoutError):
    """No answer within the time for the whole call, `Timeouts.total_s`."""


class ReadTimeoutError(RequestTimeoutError):
    """Nothing was received for `Timeouts.read_s`."""


class WriteTimeoutError(RequestTimeoutError):
    """Nothing could be sent for `Timeouts.write_s`."""


class PoolTimeoutError(RequestTimeoutError):
    """No connection was free for `Timeouts.pool_s`."""


class MissingExtraError(SegserveError):
    """A part of the client that is not installed."""


class ForkedClientError(SegserveError):
    """A client that was made before `os.fork` and cannot be used in the child: make another there."""


HTTP_ERRORS: Final[dict[int, type[SegserveError]]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: ModelNotFoundError,
    408: RequestTimeoutError,
    413: RequestTooLargeError,
    429: RateLimitError,
    503: OverloadedError,
    504: RequestTimeoutError,
}

GRPC_ERRORS: Final[dict[str, type[SegserveError]]] = {
    "INVALID_ARGUMENT": BadRequestError,
    "FAILED_PRECONDITION": BadRequestError,
    "OUT_OF_RANGE": BadRequestError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": PermissionDeniedError,
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
    if kind is RequestTooLargeError and RATE_WORDS.search(message):
        kind = RateLimitError
    return kind(message or f"gRPC status {status}", status=status, **known)
