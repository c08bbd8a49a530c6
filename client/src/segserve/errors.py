"""The client's errors, including errors of large images, and the mapping of HTTP and gRPC statuses to them."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Final

from segserve_common.errors import BadRequestError as BadRequestError
from segserve_common.errors import ProtocolError as ProtocolError
from segserve_common.errors import SegserveError as SegserveError

# The words of a server for an image beyond `input.maxPixels`, or beyond the memory of one of its steps.
TOO_LARGE_WORDS: Final = re.compile(r"\(input\.maxPixels\)|needs more memory than")
# The words of a model that refuses images unlike the images that it was made for.
UNLIKE_WORDS: Final = re.compile(r"\(outOfDistribution\.threshold\)")
# The words of a promptable model that does not hold the embedding of an image.
LOST_WORDS: Final = re.compile(r"EMBEDDING .*: send the image again")
# Triton's words for a step whose process has ended, or waited for a core for longer than a second.
STEP_WORDS: Final = re.compile(r"Stub process .* is not healthy")
# gRPC has one status for both a message that is too large and a caller that exceeds its rate.
RATE_WORDS: Final = re.compile(r"rate.?limit|quota|too many requests", re.IGNORECASE)


class AuthenticationError(SegserveError):
    """Missing or unknown credentials (401, UNAUTHENTICATED)."""


class PermissionDeniedError(SegserveError):
    """The credentials do not allow this request (403, PERMISSION_DENIED)."""


class PlainHttpCredentialsError(SegserveError):
    """Credentials would have crossed a network in plain text; nothing was sent."""


class ModelNotFoundError(SegserveError):
    """No model is served under this name (404, NOT_FOUND)."""

    advised = False
    """Whether the message says which models there are, or why this one is not served."""


class ResultTypeError(BadRequestError):
    """The model returns another type of result than `expect` names; `expect` was refused before the image was sent."""


class RequestTooLargeError(SegserveError):
    """The gateway does not accept requests of this size (413, RESOURCE_EXHAUSTED)."""


class AnswerTooLargeError(SegserveError):
    """The answer is larger than `max_answer_bytes`, or of a larger image than was sent; nothing of it was kept."""


class OverloadedError(SegserveError):
    """No server can accept the request now (503, UNAVAILABLE)."""

    retryable = True


class RateLimitError(OverloadedError):
    """The caller exceeds its rate limit, or the model is busy with long requests (429, RESOURCE_EXHAUSTED)."""

    untouched = True


class ServerError(SegserveError):
    """The server failed (500 and above, INTERNAL, UNKNOWN)."""


class StepDiedError(ServerError):
    """The process of one of the model's steps died or stalled; the server replaces it (500, INTERNAL)."""

    retryable = True
    retry_pause_s = 1.0  # what replacing it takes


class GatewayUnreachableError(SegserveError):
    """Nothing listens at the URL, or its host name is unknown."""

    retryable = True
    untouched = True


class TlsError(GatewayUnreachableError):
    """The TLS handshake failed: an untrusted certificate, or none for a gateway that requires one."""

    retryable = False


class ConnectTimeoutError(GatewayUnreachableError):
    """No connection within `Timeouts.connect_s`."""


class ConnectionLostError(GatewayUnreachableError):
    """The connection broke before the answer was complete."""

    untouched = False


class RequestTimeoutError(SegserveError):
    """No answer in time: the gateway's timeout (408, 504, DEADLINE_EXCEEDED), or one of the client's (a subclass)."""


class DeadlineExceededError(RequestTimeoutError):
    """No answer within the timeout of the whole call, `Timeouts.total_s`."""


class ReadTimeoutError(RequestTimeoutError):
    """Nothing was received for `Timeouts.read_s`."""


class WriteTimeoutError(RequestTimeoutError):
    """Nothing could be sent for `Timeouts.write_s`."""


class PoolTimeoutError(RequestTimeoutError):
    """No pooled connection became free within `Timeouts.pool_s`."""


class MissingExtraError(SegserveError):
    """A part of the client that is not installed; the message has the command that installs it."""


def package_of_extra(name: str, extra: str, what: str, otherwise: str = "") -> Any:
    """Import and return a package; raises `MissingExtraError`, which says `what` needs it and how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs a package that is not installed ({error}): pip install 'segserve[{extra}]'{otherwise}"
        ) from error


class ForkedClientError(SegserveError):
    """A client made before `os.fork` cannot be used in the child: make another one there."""


class EventLoopError(SegserveError):
    """An `AsyncClient` has connections of one event loop and was used in another: make another one there."""


class ImageTooLargeError(BadRequestError):
    """An image or result that is too large as a whole: for its model (400, INVALID_ARGUMENT), or for this process."""


class OutOfDistributionError(BadRequestError):
    """The image is unlike the images that the model was made for, and is refused (400, INVALID_ARGUMENT)."""


class EmbeddingLostError(BadRequestError):
    """The server does not hold the image's embedding: send the image again (400, INVALID_ARGUMENT)."""


class DatasetError(SegserveError):
    """Labelled images that cannot be used to evaluate a model: missing, unreadable, or of other classes."""


class CheckpointError(SegserveError):
    """The folder holds another run or is damaged; nothing in it was changed."""


class RevisionChangedError(SegserveError):
    """Another revision started to answer while tiles, or the images of an evaluation, were being sent."""


HOPELESS: Final = (ModelNotFoundError, GatewayUnreachableError)
"""Errors of one image that every other image of the same model also raises."""


class WorkersLostError(SegserveError):
    """Repeatedly, workers of a Dask cluster died while answering the same tile."""


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
    # gRPC libraries translate a bare HTTP 404, with which a gateway refuses an unknown name, to this status.
    "UNIMPLEMENTED": ModelNotFoundError,
    "RESOURCE_EXHAUSTED": RequestTooLargeError,
    "UNAVAILABLE": OverloadedError,
    "DEADLINE_EXCEEDED": RequestTimeoutError,
}


def http_error(status: int, message: str, **context: Any) -> SegserveError:
    """Return the error for an HTTP status that is not 200; `context` is passed to its constructor."""
    kind = HTTP_ERRORS.get(status)
    if kind is None:
        kind = _failed(message) if status >= 500 else _refused(message) if status >= 400 else ProtocolError
    return kind(message or f"HTTP status {status}", status=status, **context)


def grpc_error(status: str, message: str, **context: Any) -> SegserveError:
    """Return the error for the name of a gRPC status; `context` is passed to its constructor."""
    kind = GRPC_ERRORS.get(status) or _failed(message)
    if kind is RequestTooLargeError and RATE_WORDS.search(message):
        kind = RateLimitError
    elif kind is BadRequestError:
        kind = _refused(message)
    return kind(message or f"gRPC status {status}", status=status, **context)


def _failed(message: str) -> type[ServerError]:
    return StepDiedError if STEP_WORDS.search(message) else ServerError


def _refused(message: str) -> type[BadRequestError]:
    if UNLIKE_WORDS.search(message):
        return OutOfDistributionError
    if LOST_WORDS.search(message):
        return EmbeddingLostError
    return ImageTooLargeError if TOO_LARGE_WORDS.search(message) else BadRequestError
