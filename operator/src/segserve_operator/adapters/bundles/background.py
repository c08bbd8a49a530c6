"""Bundles made in the background: reading logs takes seconds, which a pass does not wait for."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from segserve_common.api_errors import ApiError
from segserve_common.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from segserve_operator.core.rollout.record import Record

MAX_CONCURRENT: Final = 4
MAX_WAITING: Final = 32
"""Number of bundles of one pool that wait; further ones are not made."""

ATTEMPTS: Final = 4
ATTEMPT_S: Final = 30.0
BACKOFF: Final = Backoff(first_s=1.0, longest_s=8.0)

log = logging.getLogger("segserve")


class BundleWriter(Protocol):
    """Makes one bundle."""

    async def save(self, record: Record, group: str) -> str:
        """Collect what a bundle consists of, store it, and return where; raises `ApiError` or `OSError`."""
        ...


@dataclass(slots=True)
class BackgroundBundles:
    """Implements `Bundles` over a writer: a bundle that fails is tried again, and what fails for good is logged.

    `slots` bounds how many are made at the same time. Servers of a group are not stopped while it is in `reading`.
    """

    writer: BundleWriter
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT))
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    _tasks: dict[str, tuple[str, asyncio.Task[None]]] = field(default_factory=dict)

    def save(self, record: Record, group: str) -> None:
        """Begin to make a bundle; one that is being made goes on."""
        if record.name in self._tasks:
            return
        if len(self._tasks) >= MAX_WAITING:
            log.warning("no bundle of rollout %s: %d others wait", record.name, MAX_WAITING)
            return
        task = asyncio.create_task(self._make(record, group), name=f"bundle {record.name}")
        self._tasks[record.name] = (group, task)
        task.add_done_callback(lambda _: self._tasks.pop(record.name, None))

    def reading(self) -> frozenset[str]:
        """Return the groups of bundles that are being made."""
        return frozenset(group for group, _ in self._tasks.values())

    async def _make(self, record: Record, group: str) -> None:
        async with self.slots:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    async with asyncio.timeout(ATTEMPT_S):
                        where = await self.writer.save(record, group)
                except (ApiError, OSError, TimeoutError) as error:
                    if attempt == ATTEMPTS:
                        log.warning("no bundle of rollout %s: %s", record.name, str(error) or "no answer in time")
                        return
                    await self.sleep(BACKOFF.delay_s(attempt))
                else:
                    log.info("bundle of rollout %s: %s", record.name, where)
                    return

    async def finish(self, timeout_s: float | None = None) -> None:
        """Wait for the bundles that are being made, at most for `timeout_s`; what is not made by then is given up."""
        tasks = [task for _, task in self._tasks.values()]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        self.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()

    def cancel(self) -> None:
        """Give up all bundles that are being made."""
        for _, task in [*self._tasks.values()]:
            task.cancel()
