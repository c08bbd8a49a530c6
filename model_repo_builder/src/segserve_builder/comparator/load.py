"""The load test: the candidate alone is asked as often as its first step will bring requests, for a while.

Callers must not notice. Nobody else serves the candidate's group, but the gateway, and often the machine, is shared: so
the rate rises to its value, and the test ends at once if stable takes longer than it did with few copies.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Final

from segserve_builder.comparator.copies import RequestCopy
from segserve_builder.comparator.groups import Answer, AnswerKind
from segserve_builder.comparator.pacing import is_slower
from segserve_builder.comparator.tally import HUNG_MS, LoadTally, lower_edge_ms

MAX_PER_S: Final = 200.0
MAX_BYTES_PER_S: Final = 48 * 2**20
"""Of requests: the gateway passes them on beside callers' ones."""
MAX_IN_FLIGHT: Final = 64
MAX_ANSWER_BYTES: Final = 64 * 2**20
"""Of all answers under way over gRPC, which holds them: so many, as large as the largest so far, are asked for."""
FEW_IN_FLIGHT: Final = 4
MAX_COPIES: Final = 8
MAX_COPIES_BYTES: Final = 16 * 2**20
"""Of the requests that are asked over and over."""
RAMP: Final = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the rate that come before all of it."""
WATCH_S: Final = 0.5
"""Shortest time between two requests to stable, by whose times the test notices that it disturbs."""
FEW: Final = 5


@dataclass(frozen=True, slots=True)
class LoadTiming:
    """Seconds of each part of the ramp and of the whole rate, and how long is waited for the last answers."""

    ramp_s: float = 2.0
    full_s: float = 30.0
    late_s: float = 5.0


LOAD_TIMING: Final = LoadTiming()


class LoadTest:
    """Asks `ask` for copies, `wanted_per_s` of them or as many as the limits allow; `calm_s` is stable's usual time."""

    def __init__(
        self,
        wanted_per_s: float,
        ask: Callable[[RequestCopy], Awaitable[Answer]],
        *,
        calm_s: float | None,
        timing: LoadTiming,
    ) -> None:
        self.copies: list[RequestCopy] = []
        self._wanted_per_s = wanted_per_s
        self._ask = ask
        self._calm_s = calm_s
        self._timing = timing
        self._stable_s: list[float] = []
        self._watched_s = float("-inf")
        self._disturbs = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._largest_answer = 0
        self._answers = 0
        self._tally = LoadTally()

    def has_room(self, copy: RequestCopy) -> bool:
        """Tell whether a copy may be kept, to be asked over and over."""
        size = sum(len(kept.body) for kept in self.copies) + len(copy.body)
        return len(self.copies) < MAX_COPIES and (size <= MAX_COPIES_BYTES or not self.copies)

    def watches(self, now_s: float) -> bool:
        """Tell whether stable is to be asked now, for its time."""
        if now_s - self._watched_s < WATCH_S:
            return False
        self._watched_s = now_s
        return True

    def learn(self, stable_s: float) -> None:
        """Learn how long stable took."""
        self._stable_s.append(stable_s)
        if len(self._stable_s) < FEW:
            return
        present_s = median(self._stable_s)
        self._stable_s.clear()
        if self._calm_s is None:
            self._calm_s = present_s
        elif is_slower(present_s, self._calm_s):
            self._disturbs.set()

    async def run(self) -> LoadTally:
        """Ask, and return what came of it. Needs a copy."""
        try:
            for part in RAMP:
                await self._ask_for(self._timing.ramp_s, part)
            before = self._answers
            asked = await self._ask_for(self._timing.full_s, 1.0, self._tally)
            answers = self._answers - before
            await self._wait(self._timing.late_s, until_answered=True)
        finally:
            late = tuple(self._under_way)
            for each in late:
                each.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if self._disturbs.is_set():
            return LoadTally(ended=True, stopped=True, wanted_per_s=self._wanted_per_s)
        self._tally.ended = True
        self._tally.wanted_per_s = self._wanted_per_s
        self._tally.asked_per_s = asked / self._timing.full_s
        self._tally.answered_per_s = answers / self._timing.full_s
        return self._tally

    async def _ask_for(self, seconds: float, part: float, tally: LoadTally | None = None) -> int:
        """Ask for so long, as callers do, each at a time of his own; return how often."""
        loop, asked = asyncio.get_running_loop(), 0
        end_s = loop.time() + seconds
        next_s = loop.time()
        while not self._disturbs.is_set():
            next_s += random.expovariate(self._rate() * part)
            await self._wait(min(next_s, end_s) - loop.time())
            if next_s >= end_s or self._disturbs.is_set():
                break
            if len(self._under_way) < self._most_in_flight():
                copy = self.copies[asked % len(self.copies)]
                task = asyncio.create_task(self._ask_once(copy, tally))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                asked += 1
        return asked

    async def _ask_once(self, copy: RequestCopy, tally: LoadTally | None) -> None:
        try:
            answer = await self._ask(copy)
        except asyncio.CancelledError:
            # Nobody waits for it any longer. One that hangs since the ramp leaves no room for a later one.
            self._tally.asked += 1
            self._tally.failed += 1
            self._tally.latencies[HUNG_MS] += 1
            raise
        self._answers += answer.kind is AnswerKind.ANSWERED
        if answer.content is not None:
            self._largest_answer = max(len(answer.content), self._largest_answer)
        if tally is not None and answer.kind not in (AnswerKind.UNREACHED, AnswerKind.REFUSED):
            tally.asked += 1
            tally.failed += answer.kind in (AnswerKind.FAILED, AnswerKind.HUNG)
            if answer.kind is AnswerKind.HUNG:
                tally.latencies[HUNG_MS] += 1
            elif answer.kind is AnswerKind.ANSWERED:
                tally.latencies[lower_edge_ms(answer.seconds)] += 1

    def _rate(self) -> float:
        size = sum(len(copy.body) for copy in self.copies) / len(self.copies)
        return min(self._wanted_per_s, MAX_PER_S, MAX_BYTES_PER_S / max(size, 1.0))

    def _most_in_flight(self) -> int:
        if all(copy.protocol == "http" for copy in self.copies):
            return MAX_IN_FLIGHT  # nobody holds their answers
        if not self._largest_answer:
            return FEW_IN_FLIGHT
        return min(MAX_IN_FLIGHT, max(FEW_IN_FLIGHT, MAX_ANSWER_BYTES // self._largest_answer))

    async def _wait(self, seconds: float, *, until_answered: bool = False) -> None:
        """Wait for so long, or until the test disturbs; or, if so wanted, until all that is under way is answered."""
        if until_answered:
            if self._under_way and not self._disturbs.is_set():
                await asyncio.wait(tuple(self._under_way), timeout=seconds)
            return
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._disturbs.wait()
