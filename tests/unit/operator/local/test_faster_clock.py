"""The faster clock of decisions: how fast it runs, and that the gateway's counts are dated by it."""

from __future__ import annotations

from fakes.platform import RecordedTraffic
from segserve_operator.core.rollout.counters import Series
from segserve_operator.local_platform.supervisor import Clock, FasterTraffic


def test_a_clock_runs_faster_from_its_beginning_on() -> None:
    assert Clock(1000.0, 10.0).at(1000.0) == 1000
    assert Clock(1000.0, 10.0).at(1006.0) == 1060
    assert Clock(1000.0).at(1_790_000_000.123) == 1_790_000_000.123


async def test_counts_are_dated_by_the_faster_clock_and_stay_the_same() -> None:
    gateway = RecordedTraffic(clock=lambda: 1006.0)
    gateway.count("coins", "main", requests=30, failed=2)

    samples = await FasterTraffic(gateway, Clock(1000.0, 10.0)).samples({"coins": ("main", "other")})

    (counters,) = samples["coins"].values()
    counted = counters.by_series[Series("main", "http")]
    assert counters.at_s == 1060
    assert (counted.attempts, counted.failed, counted.active) == (30, 2, 0)
