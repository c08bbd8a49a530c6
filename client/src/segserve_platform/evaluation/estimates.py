"""Qualities from 0 to 1 with the interval that a bootstrap of the images gives them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from segserve_operator.api.evaluation import Estimate

_MEANS: Final = 2000


def mean_estimate(scores: Sequence[float], *, interval: bool = True) -> Estimate:
    """Return the mean of images' scores; an image without a readable answer is worth nothing."""
    known = np.nan_to_num(np.array(scores, np.float64))
    if not interval:
        return Estimate(mean=round(float(known.mean()), 4))
    numbers = np.random.default_rng(0)
    # One sample after the other: those of many images would fill the memory.
    means = [known[numbers.integers(0, len(known), len(known))].mean() for _ in range(_MEANS)]
    return _rounded(float(known.mean()), *np.quantile(means, [0.025, 0.975]))


def estimates(
    values: Iterable[tuple[str, float, Sequence[float]]], *, without_interval: frozenset[str] = frozenset()
) -> dict[str, Estimate]:
    """Return qualities by name, without those that cannot be measured.

    The interval is that of the samples of which a quality can be measured; there is none without such samples.
    """
    found = {}
    for name, value, resampled in values:
        known = [each for each in resampled if not math.isnan(each)]
        if math.isnan(value):
            continue
        if name in without_interval or not known:
            found[name] = Estimate(mean=round(value, 4))
        else:
            found[name] = _rounded(value, *np.quantile(known, [0.025, 0.975]))
    return found


def _rounded(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean=round(mean, 4), low=round(float(low), 4), high=round(float(high), 4))
