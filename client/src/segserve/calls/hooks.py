"""What a caller can watch: an event for each request, answer, retry and error, and the log lines of `segserve`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve_common.errors import SegserveError

LOGGER: Final = logging.getLogger("segserve")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO}

RequestKind: TypeAlias = Literal["infer", "config"]


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """A try is about to be sent: `attempt` counts from 1, `sent_bytes` are those of its tensors."""

    model: str
    request_id: str
    kind: RequestKind
    attempt: int
    sent_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ResponseEvent:
    """A try was answered after `elapsed_s`; `revision` is the one that answered."""

    model: str
    request_id: str
    kind: RequestKind
    attempt: int
    elapsed_s: float
    revision: str | None


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """A try failed with `error`, and another follows after `pause_s`."""

    model: str
    request_id: str
    kind: RequestKind
    attempt: int
    error: SegserveError
    pause_s: float


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """A call ended with `error`, which the caller gets."""

    model: str
    request_id: str
    error: SegserveError


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that a client calls as it works, in the thread or task of the call: they must not take long.

    What they raise reaches the caller.
    """

    on_request: Callable[[RequestEvent], object] | None = None
    on_response: Callable[[ResponseEvent], object] | None = None
    on_retry: Callable[[RetryEvent], object] | None = None
    on_error: Callable[[ErrorEvent], object] | None = None

    def request(self, event: RequestEvent) -> None:
        """Tell and log that a try begins."""
        LOGGER.debug(
            "request %s: %s %s, try %d, %d bytes, %.3g s left",
            event.request_id, event.kind, event.model, event.attempt, event.sent_bytes, event.timeout_s,
        )  # fmt: skip
        if self.on_request is not None:
            self.on_request(event)

    def response(self, event: ResponseEvent) -> None:
        """Tell and log that a try was answered."""
        LOGGER.debug(
            "request %s: answered by %s after %.3f s", event.request_id, event.revision or event.model, event.elapsed_s
        )
        if self.on_response is not None:
            self.on_response(event)

    def retry(self, event: RetryEvent) -> None:
        """Tell and log that another try follows."""
        LOGGER.info(
            "request %s: try %d failed, the next in %.3g s: %s",
            event.request_id, event.attempt, event.pause_s, _named(event.error),
        )  # fmt: skip
        if self.on_retry is not None:
            self.on_retry(event)

    def error(self, event: ErrorEvent) -> None:
        """Tell and log that a call failed."""
        LOGGER.info("request %s: failed: %s", event.request_id, _named(event.error))
        if self.on_error is not None:
            self.on_error(event)

    @property
    def listening(self) -> bool:
        """Whether anybody wants to know: events are made only then."""
        return self is not SILENT or LOGGER.isEnabledFor(logging.INFO)


SILENT: Final = Hooks()


def set_up_log() -> None:
    """Write the log lines of `segserve` to stderr where `SEGSERVE_LOG` says debug or info."""
    name = os.environ.get("SEGSERVE_LOG")
    if name:
        _set_up(name)


@cache
def _set_up(name: str) -> None:
    """Do it once: a program may set another level later."""
    if name.lower() not in _LEVELS:
        raise BadRequestError(f"SEGSERVE_LOG is {' or '.join(_LEVELS)}, got {name!r}")
    logging.basicConfig(format="[%(asctime)s %(name)s %(levelname)s] %(message)s")
    LOGGER.setLevel(_LEVELS[name.lower()])


def _named(error: SegserveError) -> str:
    return f"{type(error).__name__}: {error.message}"
