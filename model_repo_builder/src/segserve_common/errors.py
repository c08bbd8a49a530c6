"""Errors of requests that speak KServe v2; the client adds one class for each cause."""

from __future__ import annotations

import re
from typing import ClassVar, Final

TRITON_PREFIXES: Final = re.compile(r"^(?:in ensemble '[^']*', |\[request id: [^\]]*\] )+")


class SegserveError(Exception):
    """A request that was not answered.

    `status` is what the server said: an HTTP status as int, a gRPC status name as str, None where it said
    nothing. `model` and `revision` are None where they are not known, and so is `request_id` where nothing was to be
    sent; `retry_after_s` is what the server asked for. `message` is the text without the request's id.
    """

    retryable: ClassVar[bool] = False
    """Whether it may pass by itself, so that a client tries again."""
    untouched: ClassVar[bool] = False
    """Whether surely no server has worked on the request: a frame of a stream is sent again only then."""

    def __init__(
        self,
        message: str,
        *,
        status: int | str | None = None,
        model: str | None = None,
        revision: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = TRITON_PREFIXES.sub("", message).strip()
        self.status = status
        self.model = model
        self.revision = revision
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message if self.request_id is None else f"{self.message} (request {self.request_id})"

    def __reduce__(self) -> tuple[type[SegserveError], tuple[str], dict[str, object]]:
        return type(self), (self.message,), self.__dict__.copy()


class BadRequestError(SegserveError):
    """An image or parameter that cannot be used (400, INVALID_ARGUMENT; None where nothing was sent)."""


class ProtocolError(SegserveError):
    """An answer that is not one: truncated, contradictory, or not of this protocol."""


class ControlError(SegserveError):
    """A platform cannot do what was requested; the message says what happened and what helps."""
