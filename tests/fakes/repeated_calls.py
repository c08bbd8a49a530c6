"""Callers within a test's event loop, who go on while something changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from fakes.waiting import eventually

Call: TypeAlias = Callable[[], Awaitable[str]]
"""One call; returns what came of it."""


class RepeatedCalls:
    """Calls that are each made again and again during the block, and how often what came of them."""

    def __init__(self, *calls: Call) -> None:
        self.outcomes = Counter[str]()
        self._calls = calls
        self._ended = False

    async def __aenter__(self) -> RepeatedCalls:
        self._tasks = [asyncio.create_task(self._repeat(call)) for call in self._calls]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)

    async def goes_on(self, more: int) -> None:
        """Return once `more` calls have ended."""
        wanted = self.outcomes.total() + more

        async def reached() -> bool:
            return self.outcomes.total() >= wanted

        await eventually(reached, f"{more} more requests")

    async def _repeat(self, call: Call) -> None:
        while not self._ended:
            self.outcomes[await call()] += 1
