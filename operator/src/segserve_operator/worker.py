"""Runs one pass at a time for each pool: when something woke it, again after a failure, and now and then anyway."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

Key = TypeVar("Key", bound="Hashable")

RESYNC_S: Final = 30.0
PASS_S: Final = 120.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
BREATH_S: Final = 0.02
LONGEST_BREATH_S: Final = 5.0
CALM_PASSES: Final = 10
PASSES_AT_ONCE: Final = 8

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass came to: how many writes it made, and in how many seconds something is due by itself."""

    writes: int
    due_s: float = RESYNC_S


class Observer(Protocol):
    """Hears of every pass."""

    def passed(self, outcome: str, seconds: float) -> None:
        """Count a pass: `ok`, or the name of its error."""
        ...


@dataclass(slots=True)
class Worker(Generic[Key]):
    """Wakes and passes. What wakes a key never matters; many wakes before a pass are one.

    `run_pass` makes the pass of a key; `wanted` tells whether there is still anything to look after; `may_run` whether
    this process is the one to do it now.
    """

    run_pass: Callable[[Key], Awaitable[Pass]]
    wanted: Callable[[Key], bool]
    may_run: Callable[[], bool]
    observer: Observer
    _bells: dict[Key, asyncio.Event] = field(default_factory=dict)
    _tasks: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PASSES_AT_ONCE))

    def wake(self, key: Key) -> None:
        """Ask for a pass."""
        if key not in self._bells:
            self._bells[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._look_after(key), name=f"passes of {key}")
        self._bells[key].set()

    async def stop(self) -> None:
        """End all passes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_after(self, key: Key) -> None:
        bell, failures, busy, wait_s = self._bells[key], 0, 0, RESYNC_S
        while self.wanted(key):
            with suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), wait_s)
            if not self.may_run():
                wait_s = 1.0
                await asyncio.sleep(BREATH_S)
                bell.clear()
                continue
            bell.clear()
            outcome = await self._attempt(key)
            if isinstance(outcome, Exception):
                failures, wait_s = failures + 1, 0.0
                # Events do not cut the pause short: what keeps failing must not keep the API busy.
                await asyncio.sleep(_pause_s(failures, outcome))
                continue
            failures, busy, wait_s = 0, (busy + 1 if outcome.writes else 0), min(outcome.due_s, RESYNC_S)
            if outcome.writes:
                bell.set()
            # What never comes to rest is a fault of ours; it shall not cost an API server more than a write in 5 s.
            await asyncio.sleep(min(BREATH_S * 2 ** max(busy - CALM_PASSES, 0), LONGEST_BREATH_S))
        del self._bells[key], self._tasks[key]

    async def _attempt(self, key: Key) -> Pass | Exception:
        async with self._turns:
            started_s = time.monotonic()
            try:
                async with asyncio.timeout(PASS_S):
                    outcome: Pass | Exception = await self.run_pass(key)
            except Exception as error:
                # One failed pass is never the end: the next one sees the world anew.
                log.warning("%s: %s: %s; the next pass tries again", key, type(error).__name__, error)
                log.debug("the pass of %s failed", key, exc_info=True)
                outcome = error
            name = type(outcome).__name__ if isinstance(outcome, Exception) else "ok"
            self.observer.passed(name, time.monotonic() - started_s)
            return outcome


def _pause_s(failures: int, error: Exception) -> float:
    asked_s = float(getattr(error, "retry_after_s", 0.0))
    pause_s: float = min(FIRST_PAUSE_S * 2 ** min(failures - 1, 10), LONGEST_PAUSE_S)
    return max(asked_s, pause_s * random.uniform(0.7, 1.0))
