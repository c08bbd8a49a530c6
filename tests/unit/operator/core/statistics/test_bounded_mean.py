"""The test whether a bounded mean exceeds a limit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from segserve_operator.core.statistics.bounded_mean import STAKES, log_wealth

LIMIT = 0.1


def wealth_value_by_value(series: list[float], limit: float) -> float:
    """Return the mean wealth of all bets, by the definition."""
    bets = []
    for stake in STAKES:
        wealth = 1.0
        for value in series:
            wealth *= 1 + stake * (value / limit - 1)
        bets.append(wealth)
    return float(np.mean(bets))


def test_counts_of_values_give_the_wealth_of_betting_on_each_in_turn() -> None:
    series = [0.0, 0.02, 0.5, 0.02, 0.2, 0.0]
    values = np.array([0.0, 0.02, 0.2, 0.5])
    counts = np.array([float(series.count(value)) for value in values])
    assert np.exp(log_wealth(counts, values, LIMIT)) == pytest.approx(wealth_value_by_value(series, LIMIT))


def test_at_the_limit_the_wealth_of_all_possible_series_is_one_on_average() -> None:
    values, chances, length = np.array([0.0, 0.5]), np.array([0.8, 0.2]), 8
    expected = 0.0
    for series in itertools.product(range(2), repeat=length):
        counts = np.bincount(series, minlength=2).astype(float)
        expected += float(np.prod(chances[list(series)]) * np.exp(log_wealth(counts, values, LIMIT)))
    assert expected == pytest.approx(1.0)


def test_a_series_at_the_limit_that_is_looked_at_after_every_value_seems_to_exceed_it_as_rarely_as_declared() -> None:
    level, runs, length = 0.05, 2000, 400
    drawn = np.random.default_rng(1).random((runs, length)) < 0.2
    counts = np.stack([np.cumsum(~drawn, 1), np.cumsum(drawn, 1)], -1).astype(float)
    evidence = log_wealth(counts, np.array([0.0, 0.5]), LIMIT).max(1)
    assert (evidence >= -np.log(level)).mean() <= level


def test_no_values_are_no_evidence_for_many_runs_at_once() -> None:
    assert log_wealth(np.zeros((3, 2)), np.array([0.0, 0.5]), LIMIT) == pytest.approx(0.0)


def test_ten_thousand_values_leave_finite_evidence() -> None:
    evidence = log_wealth(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0.0, 0.5]), LIMIT)
    assert np.isfinite(evidence).all()
    assert evidence[0] < 0 < evidence[1]
