"""Delays between attempts: exponential backoff with jitter, and `Retry-After`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


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


@dataclass(slots=True)
class _Repeat:
    content: object
    count: int
    done_s: float
    wanted_s: float


class Repeats(Generic[Key]):
    """Delays of actions that become necessary again after they were done: their effect did not last.

    An action that was not necessary for as long as its delay counts as new, and so does one with another `content`.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._done: dict[Key, _Repeat] = {}

    def count(self, key: Key) -> int:
        """Return how often in a row an action was done."""
        return self._done[key].count if key in self._done else 0

    def is_due(self, key: Key, now_s: float, content: object = None) -> bool:
        """Return whether an action may be done now."""
        return key not in self._done or self._done[key].content != content or self.wait_s(key, now_s) <= 0

    def wait_s(self, key: Key, now_s: float) -> float:
        """Return the seconds until an action that was done may be done again."""
        repeat = self._done[key]
        if now_s < repeat.done_s:  # the clock was set back
            repeat.done_s = repeat.wanted_s = now_s
        return repeat.done_s + self._backoff.delay_s(repeat.count) - now_s

    def follow(self, wanted: Collection[Key], now_s: float) -> None:
        """Forget the actions that are no longer necessary; `wanted` are all that are necessary now."""
        for key, repeat in [*self._done.items()]:
            if key in wanted:
                repeat.wanted_s = now_s
            elif now_s - repeat.wanted_s >= self._backoff.delay_s(repeat.count):
                del self._done[key]

    def record(self, key: Key, now_s: float, content: object = None) -> None:
        """Record that an action was done."""
        former = self._done.get(key)
        count = former.count + 1 if former is not None and former.content == content else 1
        self._done[key] = _Repeat(content, count, now_s, now_s)


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a `Retry-After` header asks to wait, or None for anything but seconds or an HTTP date.

    A date in the past is 0. A date is compared with `now`: the server's own `Date`, or this machine's clock.
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
