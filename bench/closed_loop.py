"""Closed-loop measurement of servers: each of several clients sends its next request after the last response."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Latencies:
    """Latencies of one target in ms, by round their median and this process's CPU time of a call, and the duration."""

    ms: list[float] = field(default_factory=list)
    medians_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.ms, percent))

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds

    def median_ratio(self, other: Latencies) -> float:
        """Return the median ratio of the two medians over rounds, in which slow changes of the machine cancel out."""
        return float(np.median(np.divide(self.medians_ms, other.medians_ms)))

    def cpu_ratio(self, other: Latencies) -> float:
        """Return the median ratio of CPU times over rounds, for a machine on which others take turns."""
        return float(np.median(np.divide(self.cpu_ms, other.cpu_ms)))

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
    """Call each target `calls` times in each of `rounds` rounds, from `concurrency` threads, alternating targets.

    Alternating spreads changes of the machine's load over all targets, so their ratios vary less than the latencies.
    """
    latencies = {name: Latencies() for name in targets}
    with ThreadPoolExecutor(concurrency) as threads:
        for turn in range(rounds):
            order = list(targets)[turn % len(targets) :] + list(targets)[: turn % len(targets)]
            for name in order:
                start, cpu_start = time.perf_counter(), time.process_time()
                futures = [threads.submit(_calls, targets[name], calls // concurrency) for _ in range(concurrency)]
                ms = [each for future in futures for each in future.result()]
                latencies[name].ms += ms
                latencies[name].medians_ms.append(float(np.median(ms)))
                latencies[name].cpu_ms.append(1000 * (time.process_time() - cpu_start) / len(ms))
                latencies[name].seconds += time.perf_counter() - start
    return latencies


def _calls(call: Callable[[], object], count: int) -> list[float]:
    latencies_ms = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        latencies_ms.append(1000 * (time.perf_counter() - start))
    return latencies_ms
