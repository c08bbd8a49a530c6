"""How other autoscalers decide, re-implemented from their sources for the simulation of `bench.archive.scaling`.

HPA: kubernetes/kubernetes, pkg/controller/podautoscaler (`replica_calculator.go`, `horizontal.go`): a loop of 15 s, a
tolerance of 10 %, servers that are not ready count as idle when more are wanted, at most the double or four more in
15 s, and the highest recommendation of the stabilisation window before fewer. KEDA: the same controller with an
external metric of type AverageValue (kedacore/keda, scalers/prometheus_scaler.go), whose total does not look at servers
that are not ready.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

SYNC_S: Final = 15
TOLERANCE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Seen:
    """What an autoscaler sees in one second: requests that arrived and are in flight, servers by state."""

    at_s: int
    arrived: float
    in_flight: float
    ready: int
    starting: int
    desired: int


class Autoscaler(Protocol):
    """An autoscaler that is told of each second."""

    def step(self, seen: Seen) -> int:
        """Return the number of servers wanted from now on."""
        ...


class _Average:
    """The mean of the last seconds."""

    def __init__(self, length: int) -> None:
        self._values: deque[float] = deque(maxlen=length)
        self._sum = 0.0

    def add(self, value: float) -> float:
        if len(self._values) == self._values.maxlen:
            self._sum -= self._values[0]
        self._values.append(value)
        self._sum += value
        return self._sum / len(self._values)


class _Highest:
    """The highest of the values of a time."""

    def __init__(self, length_s: int) -> None:
        self._length_s = length_s
        self._values: deque[tuple[int, int]] = deque()

    def add(self, at_s: int, value: int) -> int:
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((at_s, value))
        while at_s - self._values[0][0] > self._length_s:
            self._values.popleft()
        return self._values[0][1]


def _limited(recommended: int, highest: int, desired: int) -> int:
    """Return what the HPA's default behaviour makes of a recommendation: policies up, stabilisation down."""
    if recommended > desired:
        return min(recommended, max(2 * desired, desired + 4))
    return min(highest, desired)


@dataclass(slots=True)
class Hpa:
    """HorizontalPodAutoscaler on the mean number of requests in flight by pod, scraped every 15 s."""

    target: float
    stabilisation_s: int = 300
    maximum: int = 1000
    _average: _Average = field(default_factory=lambda: _Average(SYNC_S))
    _highest: _Highest | None = None
    _scraped: tuple[float, float] = (0.0, 0.0)

    def step(self, seen: Seen) -> int:
        """Decide every 15 s on what was scraped 15 s before."""
        self._highest = self._highest or _Highest(self.stabilisation_s)
        mean = self._average.add(seen.in_flight)
        if seen.at_s % SYNC_S:
            return seen.desired
        measured, self._scraped = self._scraped[1], (self._scraped[1], mean)
        recommended = min(max(self.recommendation(measured, seen), 1), self.maximum)
        return _limited(recommended, self._highest.add(seen.at_s, recommended), seen.desired)

    def recommendation(self, in_flight: float, seen: Seen) -> int:
        """Return what `calcPlainMetricReplicas` returns for so many requests in flight."""
        ready = max(seen.ready, 1)
        ratio = in_flight / ready / self.target
        if ratio <= 1.0 or not seen.starting:
            return seen.desired if abs(1.0 - ratio) <= TOLERANCE else math.ceil(ratio * ready)
        with_idle = in_flight / (ready + seen.starting) / self.target
        if abs(1.0 - with_idle) <= TOLERANCE or with_idle < 1.0:
            return seen.desired
        return math.ceil(with_idle * (ready + seen.starting))


@dataclass(slots=True)
class Keda:
    """KEDA with a Prometheus query of the rate over the last minute, as a total for each `target` a server."""

    target: float
    stabilisation_s: int = 300
    maximum: int = 1000
    window_s: int = 60
    _average: _Average | None = None
    _highest: _Highest | None = None
    _scraped: float = 0.0

    def step(self, seen: Seen) -> int:
        """Decide every 15 s on the query's value at the last scrape."""
        self._average = self._average or _Average(self.window_s)
        self._highest = self._highest or _Highest(self.stabilisation_s)
        mean = self._average.add(seen.arrived)
        if seen.at_s % SYNC_S:
            return seen.desired
        measured, self._scraped = self._scraped, mean
        recommended = min(max(self.recommendation(measured, seen), 1), self.maximum)
        return _limited(recommended, self._highest.add(seen.at_s, recommended), seen.desired)

    def recommendation(self, total: float, seen: Seen) -> int:
        """Return what `GetExternalPerPodMetricReplicas` returns for a total."""
        ratio = total / (self.target * max(seen.desired, 1))
        return seen.desired if abs(1.0 - ratio) <= TOLERANCE else math.ceil(total / self.target)
