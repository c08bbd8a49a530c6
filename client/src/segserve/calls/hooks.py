"""Hooks: events for each request, answer, retry and error, and the log of `segserve`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

from segserve_common.errors import BadRequestError, SegserveError

LOGGER: Final = logging.getLogger("segserve")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO}

RequestKind: TypeAlias = Literal["infer", "config"]


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """An attempt is about to be sent. `attempt` counts from 1; `sent_bytes` is the size of its tensors."""

    model: str
    request_id: str
    kind: RequestKind
    attempt: int
    sent_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ResponseEvent:
    """An attempt was answered after `elapsed_s` by `revision`."""

    model: str
    request_id: str
    kind: RequestKind
    attempt: int
    elapsed_s: float
    revision: str | None


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """An attempt failed with `error`; another follows after `pause_s`."""

    model: str
    request_id: str
    kind: RequestKind
    attempt: int
    error: SegserveError
    pause_s: float


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """A call failed with `error`, which the caller receives."""

    model: str
    request_id: str
    error: SegserveError


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions that a client calls during its work, in the thread or task of the call; they must return quickly.

    Exceptions they raise reach the caller.
    """

    on_request: Callable[[RequestEvent], object] | None = None
    on_response: Callable[[ResponseEvent], object] | None = None
    on_retry: Callable[[RetryEvent], object] | None = None
    on_error: Callable[[ErrorEvent], object] | None = None

    def request(self, event: RequestEvent) -> None:
        """Report and log the start of an attempt."""
        LOGGER.debug(
            "request %s: %s %s, attempt %d, %d bytes, %.3g s left",
            event.request_id, event.kind, event.model, event.attempt, event.sent_bytes, event.timeout_s,
        )  # fmt: skip
        if self.on_request is not None:
            self.on_request(event)

    def response(self, event: ResponseEvent) -> None:
        """Report and log the answer to an attempt."""
        LOGGER.debug(
            "request %s: answered by %s after %.3f s", event.request_id, event.revision or event.model, event.elapsed_s
        )
        if self.on_response is not None:
            self.on_response(event)

    def retry(self, event: RetryEvent) -> None:
        """Report and log that another attempt follows."""
        LOGGER.info(
            "request %s: attempt %d failed, next in %.3g s: %s",
            event.request_id, event.attempt, event.pause_s, _named(event.error),
        )  # fmt: skip
        if self.on_retry is not None:
            self.on_retry(event)

    def error(self, event: ErrorEvent) -> None:
        """Report and log that a call failed."""
        LOGGER.info("request %s: failed: %s", event.request_id, _named(event.error))
        if self.on_error is not None:
            self.on_error(event)

    @property
    def listening(self) -> bool:
        """Whether a hook or the log is active; otherwise no events are created."""
        return self is not SILENT or LOGGER.isEnabledFor(logging.INFO)


SILENT: Final = Hooks()


def set_up_log() -> None:
    """Write the log of `segserve` to stderr if `SEGSERVE_LOG` is debug or info."""
    name = os.environ.get("SEGSERVE_LOG")
    if name:
        _set_up(name)


@cache
def _set_up(name: str) -> None:
    """Set the level once: a program may change it later."""
    if name.lower() not in _LEVELS:
        raise BadRequestError(f"SEGSERVE_LOG must be {' or '.join(_LEVELS)}, got {name!r}")
    logging.basicConfig(format="[%(asctime)s %(name)s %(levelname)s] %(message)s")
    LOGGER.setLevel(_LEVELS[name.lower()])


def _named(error: SegserveError) -> str:
    return f"{type(error).__name__}: {error.message}"
