"""A cache that viewers share: however many pages poll, the platform is read once in each interval."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class TimedCache(Generic[T]):
    """The outcome of a function, also an exception, for `every_s` seconds."""

    def __init__(self, read: Callable[[], T], every_s: float) -> None:
        self._read = read
        self._every_s = every_s
        self._lock = asyncio.Lock()
        self._ends_s = 0.0
        self._value: T | None = None
        self._error: Exception | None = None

    async def get(self) -> T:
        """Return the latest value, read anew in a thread if it is too old; raises what the function raised."""
        async with self._lock:
            if time.monotonic() >= self._ends_s:
                self._value, self._error = None, None
                try:
                    self._value = await asyncio.to_thread(self._read)
                except Exception as error:
                    self._error = error
                self._ends_s = time.monotonic() + self._every_s
            if self._error is not None:
                raise self._error.with_traceback(None)
            assert self._value is not None
            return self._value

    def clear(self) -> None:
        """Let the next `get` read anew."""
        self._ends_s = 0.0
