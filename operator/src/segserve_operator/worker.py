"""Worker that reconciles each pool: one pass at a time, after an event, after a failure, and at an interval."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from segserve_common.backoff import Backoff

Key = TypeVar("Key", bound=Hashable)

RESYNC_S: Final = 30.0
REST_S: Final = 300.0
"""Interval of passes over a key at rest, which an event or the audit ends at once."""
PASS_TIMEOUT_S: Final = 120.0
BACKOFF: Final = Backoff(first_s=0.1, longest_s=30.0, jitter=(0.7, 1.0))
DEBOUNCE_S: Final = 0.02
CALM_PASSES: Final = 20
"""Passes with writes beyond one a second, after which the delay before the next one grows."""
BUSY_BACKOFF: Final = Backoff(first_s=2 * DEBOUNCE_S, longest_s=5.0)
CONCURRENT_PASSES: Final = 8

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """Result of a pass: the number of writes, and the seconds until the next pass is due without an event.

    `at_rest` says whether nothing becomes due as time passes.
    """

    writes: int
    due_s: float = RESYNC_S
    at_rest: bool = False


class Observer(Protocol):
    """Observer of the passes of a worker."""

    def passed(self, outcome: str, seconds: float) -> None:
        """Count a pass: `ok`, or the name of its error."""


@dataclass(slots=True)
class Worker(Generic[Key]):
    """A queue of keys and a task for each. It does not matter which event enqueued a key; events before a pass are one.

    `run_pass` reconciles a key; `wanted` says whether there is still anything to reconcile for it; `may_run` says
    whether this process is the leader now.
    """

    run_pass: Callable[[Key], Awaitable[ReconcileResult]]
    wanted: Callable[[Key], bool]
    may_run: Callable[[], bool]
    observer: Observer
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    _events: dict[Key, asyncio.Event] = field(default_factory=dict)
    _tasks: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_PASSES))

    def enqueue(self, key: Key) -> None:
        """Request a pass of a key."""
        if key not in self._events:
            self._events[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._reconcile(key), name=f"reconcile {key}")
        self._events[key].set()

    async def stop(self) -> None:
        """Cancel all passes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reconcile(self, key: Key) -> None:
        event, failures, wait_s = self._events[key], 0, RESYNC_S
        busy, wrote_s = 0.0, self.clock()
        while self.wanted(key):
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), wait_s)
            if not self.may_run():
                wait_s = 1.0
                await self.sleep(DEBOUNCE_S)
                event.clear()
                continue
            event.clear()
            outcome = await self._attempt(key)
            if isinstance(outcome, Exception):
                failures, wait_s = failures + 1, 0.0
                # Events do not shorten the delay: a key that keeps failing must not keep the API server busy.
                retry_after_s = float(getattr(outcome, "retry_after_s", 0.0))
                await self.sleep(max(retry_after_s, BACKOFF.delay_s(failures)))
                continue
            failures, wait_s = 0, min(outcome.due_s, REST_S if outcome.at_rest else RESYNC_S)
            delay_s = DEBOUNCE_S
            if outcome.writes:
                event.set()
                now_s = self.clock()
                busy, wrote_s = max(0.0, busy - (now_s - wrote_s)) + 1, now_s
                # A key that never settles is a bug of ours; limit what it costs the API server to about a pass a
                # second. Many models, each of which has something to write, are not a bug: they must not slow each
                # other.
                if busy > CALM_PASSES:
                    delay_s = BUSY_BACKOFF.delay_s(math.ceil(busy - CALM_PASSES))
            await self.sleep(delay_s)
        del self._events[key], self._tasks[key]

    async def _attempt(self, key: Key) -> ReconcileResult | Exception:
        async with self._slots:
            started_s = self.clock()
            try:
                async with asyncio.timeout(PASS_TIMEOUT_S):
                    outcome: ReconcileResult | Exception = await self.run_pass(key)
            except Exception as error:
                # Nothing is lost: the next pass reads the cluster anew.
                log.warning("%s: %s: %s; the next pass tries again", key, type(error).__name__, error)
                log.debug("the pass of %s failed", key, exc_info=True)
                outcome = error
            name = type(outcome).__name__ if isinstance(outcome, Exception) else "ok"
            self.observer.passed(name, self.clock() - started_s)
            return outcome
