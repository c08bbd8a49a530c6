"""The interval of a ratio of means: how often it misses, and what it says of values that hardly vary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segserve_operator.core.statistics.mean_ratio import interval


@pytest.mark.parametrize(("of_first", "of_second"), [(20, 20), (100, 20), (20, 100)])
def test_the_interval_misses_the_ratio_at_some_look_hardly_ever(of_first: int, of_second: int) -> None:
    """Means of skewed values, looked at after every twentieth of 300 pairs: at 5 % it may miss in 10 of 200 series."""
    rng, missed = np.random.default_rng(7), 0
    for _ in range(200):
        first = 1.3 * rng.exponential(1.0, (300, of_first)).mean(1)
        pairs = list(zip(first, rng.exponential(1.0, (300, of_second)).mean(1), strict=True))
        bounds = (interval(pairs[:count], 0.05)[1:] for count in range(20, 301, 20))
        missed += not all(low <= 1.3 <= high for low, high in bounds)

    assert missed <= 10 + 2 * math.sqrt(10)


def test_equal_values_are_their_ratio() -> None:
    assert interval([(3.0, 2.0)] * 10, 0.01) == pytest.approx((1.5, 1.5, 1.5), rel=1e-4)


def test_the_interval_narrows_with_more_pairs_and_holds_the_ratio_of_the_means() -> None:
    pairs = [(1.0 + 0.3 * math.sin(at), 1.0 + 0.3 * math.cos(at)) for at in range(400)]
    (few, few_low, few_high), (_, low, high) = interval(pairs[:20], 0.01), interval(pairs, 0.01)

    assert few_low < low < 1.0 < high < few_high
    assert few_low < few < few_high


def test_values_that_vary_more_than_they_are_large_have_no_upper_bound() -> None:
    pairs = [(1.0, 20.0 if at == 0 else 0.01) for at in range(20)]

    assert interval(pairs, 0.01)[2] == math.inf
