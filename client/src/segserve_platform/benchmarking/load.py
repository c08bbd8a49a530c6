"""Requests in a closed or an open loop, and how long each took.

In a closed loop each caller sends its next request after the last answer, so that a server that stalls is asked less.
In an open loop requests are due at random times (a Poisson process) whatever becomes of the others; a latency begins
when its request was due, also where all threads were busy then. Otherwise the requests that a stall kept from being
sent would be missing among the slow ones: "coordinated omission" (Tene, How NOT to Measure Latency, 2013).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from segserve_common.errors import BadRequestError, SegserveError

Call: TypeAlias = Callable[[int], object]
"""Sends the request of a number; raises `SegserveError` if it is not answered."""

MOST_IN_FLIGHT: Final = 256
"""Requests in flight in an open loop; further ones wait here, which counts."""


@dataclass(frozen=True, slots=True)
class OfferedLoad:
    """How requests come: from so many callers in a closed loop, or at a mean rate in an open one.

    Raises `BadRequestError` unless it is exactly one of them, and within its bounds.
    """

    concurrency: int | None = None
    requests_per_s: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.requests_per_s is None):
            raise BadRequestError("a load has either concurrency or requests_per_s")
        if self.concurrency is not None and not 1 <= self.concurrency <= MOST_IN_FLIGHT:
            raise BadRequestError(f"concurrency must be from 1 to {MOST_IN_FLIGHT}, got {self.concurrency}")
        if self.requests_per_s is not None and not 0 < self.requests_per_s <= 100_000:
            raise BadRequestError(f"requests_per_s must be above 0 and at most 100,000, got {self.requests_per_s}")

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} at once"
        return f"{self.requests_per_s:g} per s"


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """The requests of a stretch of time.

    `due_s` (N,) is when each answered one was due, in seconds since the start, and `latency_ms` (N,) how long it took
    from then on. `errors` counts the others by their error.
    """

    seconds: float
    due_s: npt.NDArray[np.float64]
    latency_ms: npt.NDArray[np.float64]
    errors: Counter[str]

    @property
    def per_s(self) -> float:
        """How many requests were answered a second: fewer than were due where answers came late."""
        ended_s = self.due_s + self.latency_ms / 1e3
        return len(self.due_s) / max(self.seconds, float(ended_s.max(initial=0.0)))

    def parts(self, number: int) -> Iterator[RequestTimes]:
        """Yield what was due in each of so many equal parts of the time, in order; the first has all errors."""
        edges = np.linspace(0, self.seconds, number + 1)
        places = np.clip(np.searchsorted(edges, self.due_s, side="right") - 1, 0, number - 1)
        for part in range(number):
            own = places == part
            errors = self.errors if part == 0 else Counter[str]()
            yield RequestTimes(self.seconds / number, self.due_s[own], self.latency_ms[own], errors)

    @classmethod
    def joined(cls, parts: Sequence[RequestTimes]) -> RequestTimes:
        """Return several stretches of time as one, each at its own times."""
        return cls(
            sum(part.seconds for part in parts),
            np.concatenate([part.due_s for part in parts]),
            np.concatenate([part.latency_ms for part in parts]),
            sum((part.errors for part in parts), Counter[str]()),
        )


def send(call: Call, load: OfferedLoad, seconds: float, *, warmup_s: float = 0.0, seed: int = 0) -> RequestTimes:
    """Send requests for `warmup_s`, which are not counted, and then for `seconds`; return those once all have ended."""
    if load.concurrency is not None:
        outcomes = _closed(call, load.concurrency, warmup_s + seconds)
    else:
        assert load.requests_per_s is not None, "a load has one of both"
        outcomes = _open(call, load.requests_per_s, warmup_s + seconds, seed)
    counted = [each for each in outcomes if each.due_s >= warmup_s]
    answered = [each for each in counted if not each.error]
    return RequestTimes(
        seconds,
        np.array([each.due_s - warmup_s for each in answered]),
        np.array([1e3 * (each.ended_s - each.due_s) for each in answered]),
        Counter(each.error for each in counted if each.error),
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    due_s: float
    ended_s: float
    error: str


def _ask(call: Call, number: int, began_s: float, due_s: float) -> _Outcome:
    try:
        call(number)
        error = ""
    except SegserveError as raised:
        error = type(raised).__name__
    return _Outcome(due_s, time.perf_counter() - began_s, error)


def _closed(call: Call, callers: int, seconds: float) -> list[_Outcome]:
    numbers, together, given_up = count(), threading.Barrier(callers), threading.Event()

    def ask_until_the_end() -> list[_Outcome]:
        together.wait()
        began_s, outcomes = time.perf_counter(), list[_Outcome]()
        while (due_s := time.perf_counter() - began_s) < seconds and not given_up.is_set():
            outcomes.append(_ask(call, next(numbers), began_s, due_s))
        return outcomes

    with ThreadPoolExecutor(callers) as threads:
        asked = [threads.submit(ask_until_the_end) for _ in range(callers)]
        try:
            return [outcome for each in asked for outcome in each.result()]
        finally:
            given_up.set()  # after an interrupt nobody waits for the rest of the time


def _open(call: Call, requests_per_s: float, seconds: float, seed: int) -> list[_Outcome]:
    random, due_s, asked = np.random.default_rng(seed), 0.0, list[Future[_Outcome]]()
    with ThreadPoolExecutor(MOST_IN_FLIGHT) as threads:
        began_s = time.perf_counter()
        try:
            while (due_s := due_s + float(random.exponential(1 / requests_per_s))) < seconds:
                time.sleep(max(began_s + due_s - time.perf_counter(), 0))
                asked.append(threads.submit(partial(_ask, call, len(asked), began_s, due_s)))
            return [each.result() for each in asked]
        finally:
            for each in asked:
                each.cancel()  # after an interrupt nobody waits for what was not sent yet
