"""Qualities from 0 to 1 with the interval that a bootstrap of the images gives them (Efron 1979)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from segserve_operator.api.meta import ApiValue

Share = Annotated[float, Field(ge=0, le=1)]

_MEANS: Final = 2000


class Estimate(ApiValue):
    """A quality from 0 to 1, and the ends of its 95 % interval, both None without one."""

    mean: Share
    low: Share | None = None
    high: Share | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def mean_estimate(scores: Sequence[float], *, interval: bool = True) -> Estimate:
    """Return the mean of images' scores; an image without a readable answer is worth nothing."""
    known = np.nan_to_num(np.array(scores, np.float64))
    if not interval:
        return Estimate(mean=round(float(known.mean()), 4))
    numbers = np.random.default_rng(0)
    # One sample after the other: all samples of many images would fill the memory.
    means = [known[numbers.integers(0, len(known), len(known))].mean() for _ in range(_MEANS)]
    return _rounded(float(known.mean()), *np.quantile(means, [0.025, 0.975]))


def estimates(values: Iterable[tuple[str, float, Sequence[float]]]) -> dict[str, Estimate]:
    """Return qualities by name, without those that cannot be measured.

    The interval is over the samples of which a quality can be measured; there is none without such samples.
    """
    found = {}
    for name, value, resampled in values:
        known = [each for each in resampled if not math.isnan(each)]
        if math.isnan(value):
            continue
        if not known:
            found[name] = Estimate(mean=round(value, 4))
        else:
            found[name] = _rounded(value, *np.quantile(known, [0.025, 0.975]))
    return found


def _rounded(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean=round(mean, 4), low=round(float(low), 4), high=round(float(high), 4))
