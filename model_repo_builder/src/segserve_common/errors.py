"""Errors of requests that speak KServe v2; the client adds one class for each cause."""

from __future__ import annotations

import re
from typing import ClassVar, Final

TRITON_PREFIXES: Final = re.compile(r"^(?:in ensemble '[^']*', |\[request id: [^\]]*\] )+")


class SegserveError(Exception):
    """A request that was not answered.

    `status` is the HTTP status as int, the name of the gRPC status as str, or None without an answer. `model` and
    `revision` are None if unknown, `request_id` if there was no request to send. `retry_after_s` is the delay that
    the server asks for. `message` is the text without the request's id.
    """

    retryable: ClassVar[bool] = False
    """Whether the error may be transient, so that a client retries."""
    retry_pause_s: ClassVar[float] = 0.0
    """How long a client waits before it retries, beside its backoff, if the server does not say."""
    untouched: ClassVar[bool] = False
    """Whether certainly no server has processed the request: only then is a frame of a stream sent again."""

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
    """An invalid image or parameter (400, INVALID_ARGUMENT; None if nothing was sent)."""


class ProtocolError(SegserveError):
    """An invalid answer: truncated, contradictory, or of another protocol."""


class ControlError(SegserveError):
    """A platform cannot do what was requested; the message says what happened and what helps."""
