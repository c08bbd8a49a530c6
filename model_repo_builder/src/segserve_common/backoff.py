"""Delays between attempts: exponential backoff with jitter, and `Retry-After`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `first_s`, doubled after each further failure in a row, at most `longest_s`.

    `jitter` bounds the factor that each delay is multiplied by, so that clients that failed together do not return
    together.
    """

    first_s: float
    longest_s: float = math.inf
    jitter: tuple[float, float] = (1.0, 1.0)

    def delay_s(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """Return the delay in seconds after `failures` failures in a row, 1 or more.

        `draw` returns the position within `jitter`, 0 to 1.
        """
        least, most = self.jitter
        doubled = self.first_s * 2.0 ** min(failures - 1, 1023)  # a larger power overflows
        return min(doubled, self.longest_s) * (least + (most - least) * draw())


class RetryDelays:
    """The delays of one loop: each is the next of its backoff until a success resets them."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0

    def next_s(self) -> float:
        """Return the delay in seconds after one more failure."""
        self._failures += 1
        return self._backoff.delay_s(self._failures)

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._failures = 0


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header asks to wait, or None for anything but seconds or an HTTP date.

    A date in the past is 0. `now` is what a date is compared with: the server's own `Date`, or this machine's clock.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        date = http_date(text)
        return None if date is None else max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
    return seconds if 0 <= seconds < math.inf else None


def http_date(text: str | None) -> datetime | None:
    """Return the time of an HTTP date, or None for anything else."""
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
