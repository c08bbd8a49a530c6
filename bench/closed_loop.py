"""Measures servers side by side: each of several clients sends its next request when the last was answered."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(slots=True)
class Latencies:
    """All answers of one target: how long each took, the median of each round, how long all rounds took together."""

    ms: list[float] = field(default_factory=list)
    medians_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.ms, percent))

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds

    def median_ratio(self, other: Latencies) -> float:
        """Return the median over rounds of how this one's median compares: what changes slowly cancels out."""
        return float(np.median(np.divide(self.medians_ms, other.medians_ms)))

    def to_json(self) -> dict[str, float]:
        return {
            "p50_ms": round(self.percentile(50), 3),
            "p95_ms": round(self.percentile(95), 3),
            "requests_per_s": round(self.per_second, 2),
            "requests": len(self.ms),
        }


def measure(
    targets: Mapping[str, Callable[[], object]], *, concurrency: int, rounds: int, calls: int
) -> dict[str, Latencies]:
    """Call each target `rounds` times `calls` times from `concurrency` threads, the targets taking turns.

    Turns share what the machine does meanwhile among all targets, so that their ratios are steadier than any of them.
    """
    found = {name: Latencies() for name in targets}
    with ThreadPoolExecutor(concurrency) as threads:
        for turn in range(rounds):
            order = list(targets)[turn % len(targets) :] + list(targets)[: turn % len(targets)]
            for name in order:
                start = time.perf_counter()
                answers = [threads.submit(_calls, targets[name], calls // concurrency) for _ in range(concurrency)]
                ms = [each for answer in answers for each in answer.result()]
                found[name].ms += ms
                found[name].medians_ms.append(float(np.median(ms)))
                found[name].seconds += time.perf_counter() - start
    return found


def _calls(call: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - start))
    return found
