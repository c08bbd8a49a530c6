"""Kayenta: Mann-Whitney on the points of time series, canary against baseline, over a growing window.

`MannWhitneyClassifier`: High where the lower end of the 98 % interval of the Hodges-Lehmann shift exceeds 0.25 of its
estimate, and the means' ratio is at least `allowedIncrease`. A metric without points on one side is NODATA; where at
least half of the metrics are, the score is 0. Score: percent of metrics that pass, by weight; below `marginal` ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.rollout.world import Floats

TOLERANCE: Final = 0.25
ALLOWED_INCREASE: Final = 1.0
MARGINAL: Final = 75.0
PASS: Final = 95.0
JUDGED_EVERY: Final = 10
"""Points, which is 2.5 minutes: the whole rollout is judged four times."""

_Z: Final = 2.3263478740408408


def high(canary: Floats, baseline: Floats, tolerance: float = TOLERANCE) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which runs' metric is High, and which have data. Points are [runs, points], NaN where there is none."""
    n, m = np.isfinite(canary).sum(1), np.isfinite(baseline).sum(1)
    pairs = np.sort((canary[:, :, None] - baseline[:, None, :]).reshape(len(canary), -1), axis=1)
    count = n * m
    known = count > 0
    lower = _at(pairs, np.floor(count / 2 - _Z * np.sqrt(count * (n + m + 1) / 12)), count)
    estimate = 0.5 * (_at(pairs, (count - 1) // 2, count) + _at(pairs, count // 2, count))
    ratio = _mean(canary) / np.maximum(_mean(baseline), 1e-12)
    return known & (lower > tolerance * np.abs(estimate)) & (ratio >= ALLOWED_INCREASE), known


def score(highs: NDArray[np.bool_], known: NDArray[np.bool_]) -> Floats:
    """Return the percent of metrics that pass, [runs]; arguments are [metrics, runs]."""
    passed = (known & ~highs).sum(0) / np.maximum(known.sum(0), 1) * 100.0
    found: Floats = np.where(2 * (~known).sum(0) >= len(known), 0.0, passed)
    return found


def rolled_back_s(
    metrics: list[tuple[Floats, Floats]], point_s: float, tolerance: float = TOLERANCE, *, no_data_fails: bool = True
) -> Floats:
    """Return when each run is ended, inf where it is not; each metric is (canary's points, baseline's)."""
    runs, points = metrics[0][0].shape
    found = np.full(runs, np.inf)
    for until in range(JUDGED_EVERY, points + 1, JUDGED_EVERY):
        judged = [high(canary[:, :until], baseline[:, :until], tolerance) for canary, baseline in metrics]
        highs, known = np.stack([each for each, _ in judged]), np.stack([each for _, each in judged])
        bad = score(highs, known | (not no_data_fails)) < (PASS if until == points else MARGINAL)
        found = np.where(bad & np.isinf(found), until * point_s, found)
    return found


def _at(pairs: Floats, index: Floats, count: Floats) -> Floats:
    """Return each run's ordered difference; below all of them where the index is negative."""
    at = np.clip(index, 0, np.maximum(count - 1, 0)).astype(int)
    values = np.take_along_axis(pairs, at[:, None], 1)[:, 0]
    found: Floats = np.where(index < 0, -np.inf, values)
    return found


def _mean(points: Floats) -> Floats:
    known = np.isfinite(points)
    found: Floats = np.where(known, points, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    return found
