"""Flagger: every minute each metric must lie in its range; five misses in all, and the next tick rolls back.

`pkg/controller/scheduler.go`: a miss halts the advancement of the weight and adds to `failedChecks`, which no pass
resets; `failedChecks >= threshold` is tested at the start of a tick, before its own check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.rollout.world import Floats

INTERVAL_S: Final = 60.0
THRESHOLD: Final = 5
STEP: Final = 0.05
MAX_WEIGHT: Final = 0.5
LONGEST_TICKS: Final = round(MAX_WEIGHT / STEP) + THRESHOLD + 1
"""Every tick passes, misses, or ends it."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Where canaries stand: weight (0 to 1), misses, and when they were rolled back or promoted. All [runs]."""

    weight: Floats
    failed_checks: Floats
    rolled_back_s: Floats
    promoted_s: Floats

    @classmethod
    def begun(cls, runs: int) -> Canaries:
        """Return canaries with their first weight."""
        never = np.full(runs, np.inf)
        return cls(np.full(runs, STEP), np.zeros(runs), never, never)

    @property
    def running(self) -> NDArray[np.bool_]:
        """Which are not at an end."""
        return ~(np.isfinite(self.rolled_back_s) | np.isfinite(self.promoted_s))


def tick(canaries: Canaries, missed: NDArray[np.bool_], now_s: float) -> Canaries:
    """Return the canaries after one tick; `missed`: some metric is out of its range, or none came."""
    running = canaries.running
    ends = running & (canaries.failed_checks >= THRESHOLD)
    missed = running & ~ends & missed
    passed = running & ~ends & ~missed
    full = canaries.weight >= MAX_WEIGHT - 1e-9
    return Canaries(
        np.where(passed & ~full, canaries.weight + STEP, canaries.weight),
        canaries.failed_checks + missed,
        np.where(ends, now_s, canaries.rolled_back_s),
        np.where(passed & full, now_s, canaries.promoted_s),
    )
