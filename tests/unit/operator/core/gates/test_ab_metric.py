"""The result of an A/B test by a metric of others: each value counts once, and how often the interval misses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segserve_operator.api.ab_test import AbTestQuery
from segserve_operator.core.evidence import EvidenceWindow, Floats, MetricValues
from segserve_operator.core.gates.ab_metric import AbMetricResult
from segserve_operator.core.gates.ab_test import BETTER, OPEN, WORSE
from segserve_operator.core.rollout.plain import from_plain, to_plain

RUNS = 200
GATE = AbMetricResult(-10.0, 30.0)


def window(at_s: float, values: Floats) -> EvidenceWindow:
    metric = MetricValues(np.full(values.shape[:-1], at_s), values)
    return replace(EvidenceWindow.nothing(values.shape[:-1]), metric=metric)


@pytest.mark.parametrize("difference", [0.0, 4.0])
def test_the_interval_holds_the_difference_at_all_looks(difference: float) -> None:
    random, state, held = np.random.default_rng(7), GATE.start((RUNS,)), np.ones(RUNS, bool)
    for at in range(300):
        common = random.uniform(-5.0, 15.0, (RUNS, 1))
        noise = random.choice([-4.0, 4.0], (RUNS, 2))
        state = GATE.update(state, window(60.0 * at, common + noise + [0.0, difference]))
        if at % 10 == 9:
            low, high = GATE.difference(state)
            held &= (low <= difference) & (difference <= high)

    assert held.mean() >= 0.95
    assert (low > 0).mean() == 1.0 if difference else (low > 0).mean() <= 0.05


@pytest.mark.parametrize(
    ("values", "higher_is_better", "reason"),
    [((5.0, 3.0), False, BETTER), ((5.0, 3.0), True, WORSE), ((3.0, 5.0), True, BETTER), ((4.0, 4.0), False, OPEN)],
)
def test_which_values_are_better_is_declared(values: tuple[float, float], higher_is_better: bool, reason: str) -> None:
    gate = AbMetricResult(0.0, 10.0, higher_is_better)
    state = gate.start()
    for at in range(200):
        state = gate.update(state, window(float(at), np.array(values)))
    verdict = gate.explain(state, 0.01)

    assert verdict.reason == reason
    assert (verdict.numbers["stable"], verdict.numbers["candidate"]) == values
    assert verdict.numbers["low"] <= values[1] - values[0] <= verdict.numbers["high"]


def test_a_value_counts_once_however_often_it_is_seen() -> None:
    state = GATE.update(GATE.start(), window(5.0, np.array([1.0, 2.0])))
    for _ in range(5):
        state = GATE.update(state, window(5.0, np.array([1.0, 2.0])))
    state = GATE.update(state, EvidenceWindow.nothing())

    assert state.counts.sum() == pytest.approx(1.0)
    assert GATE.update(state, window(6.0, np.array([1.0, 2.0]))).counts.sum() == pytest.approx(2.0)
    assert from_plain(GATE.start(), to_plain(state)).at_s == 5.0


def test_a_value_that_looks_back_on_time_that_was_counted_does_not_count() -> None:
    """A check asks at once after a restart of the operator or a quarantine, and then at its interval."""
    gate, values = AbMetricResult(-10.0, 30.0, interval_s=60.0), np.array([1.0, 2.0])
    state = gate.start()
    for at_s in (0.0, 60.5, 75.0, 80.0, 119.9, 180.0, 181.0):
        state = gate.update(state, window(at_s, values))

    assert state.counts.sum() == pytest.approx(4.0)
    assert state.at_s == 180.0
    assert gate.update(state, EvidenceWindow.nothing()) is state


def test_the_interval_of_a_query_is_that_of_its_values() -> None:
    query = AbTestQuery(
        address="http://prometheus:9090", query="up{revision}", interval="2m", minimum=0, maximum=1, better="lower"
    )

    assert AbMetricResult.of(query).interval_s == 120.0


def test_a_value_outside_the_declared_bounds_counts_as_the_nearest_and_is_told() -> None:
    state = GATE.update(GATE.start(), window(0.0, np.array([99.0, 0.0])))
    verdict = GATE.explain(state, 0.01)

    assert verdict.numbers["stable"] == 30.0
    assert "1 values were outside -10 to 30" in verdict.message
    assert GATE.explain(GATE.start(), 0.01).reason == OPEN
