"""Anytime-valid interval of a ratio of two means, from pairs of block means that were taken at the same time.

The ratio of the means is r where the mean of first - r * second is zero. That difference has no bias, however many
values each mean has; the mean of the pairs' ratios, or of their logarithms, has one. The interval is an asymptotic
confidence sequence of the difference (Waudby-Smith and others, 2024), turned into one of r as Fieller does.

It takes pairs to be independent with finite variance, and enough of them for the central limit theorem. The mean of few
skewed values and its standard error err together. Hence a difference counts only if it is large enough both as it is
and after Hall's (1992) transformation, which removes the skewness that the pairs show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

_TIGHTEST_AT: Final = 50
"""Number of pairs at which the interval is tightest."""
_LEAST_DEVIATION: Final = 1e-6
"""Of the second mean: what varies less is as good as constant."""
_HALVINGS: Final = 40
_MOST_DOUBLINGS: Final = 20


def interval(pairs: Sequence[tuple[float, float]], level: float) -> tuple[float, float, float]:
    """Return the ratio of the means and its bounds, which hold after every pair together with 1 - `level`.

    Values are positive. Without an upper bound that is infinity.
    """
    values = np.asarray(pairs, dtype=float)
    count = len(values)
    first, second = (float(each) for each in values.mean(0))
    score, ratio, needed = _scores(values, first, second), first / second, _needed(count, level)
    low = _edge(lambda limit: min(score(limit)) > needed, 0.0, ratio)
    beyond = (ratio * 2.0**doublings for doublings in range(1, _MOST_DOUBLINGS + 1))
    highest = next((limit for limit in beyond if max(score(limit)) < -needed), None)
    high = math.inf if highest is None else _edge(lambda limit: max(score(limit)) < -needed, highest, ratio)
    return ratio, low, high


def _needed(count: int, level: float) -> float:
    """Return the half width of the confidence sequence of a mean, in standard deviations."""
    log_level = -2 * math.log(level)
    rho2 = (log_level + math.log(log_level) + 1) / _TIGHTEST_AT
    spread = count * rho2 + 1
    return math.sqrt(2 * spread / (count**2 * rho2) * math.log(math.sqrt(spread) / level))


def _scores(values: Floats, first: float, second: float) -> Callable[[float], tuple[float, float]]:
    """Return the function of a ratio that gives the mean difference in standard deviations, plain and transformed."""
    count = len(values)
    one, two = (values - (first, second)).T
    squares = [float((one**power * two ** (2 - power)).sum()) / (count - 1) for power in (2, 1, 0)]
    cubes = [float((one**power * two ** (3 - power)).mean()) for power in (3, 2, 1, 0)]

    def score(ratio: float) -> tuple[float, float]:
        variance = squares[0] - 2 * ratio * squares[1] + ratio**2 * squares[2]
        deviation = max(math.sqrt(max(variance, 0.0)), _LEAST_DEVIATION * second)
        cube = cubes[0] - 3 * ratio * cubes[1] + 3 * ratio**2 * cubes[2] - ratio**3 * cubes[3]
        skewness, plain = cube / deviation**3, (first - ratio * second) / deviation
        bent = skewness * plain**2 / 3 + skewness**2 * plain**3 / 27 + skewness / (6 * count)
        return plain, plain + bent

    return score


def _edge(refuted: Callable[[float], bool], outer: float, inner: float) -> float:
    """Return where ratios begin to be refuted, between `inner`, which is not, and `outer`; that one if it is not."""
    if not refuted(outer):
        return outer
    for _ in range(_HALVINGS):
        middle = (outer + inner) / 2
        outer, inner = (middle, inner) if refuted(middle) else (outer, middle)
    return outer
