"""The sequential test of one histogram."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segserve_operator.core.drift.detector import (
    Detector,
    ReferenceRange,
    bucket_shares,
    first_window,
    kl_divergence,
    log_bound,
    psi,
)

WINDOWS_PER_MONTH = 8640.0
BOUND = log_bound(0.1, WINDOWS_PER_MONTH, 1)


def window(random: np.random.Generator, mean: float, answers: int = 60) -> tuple[float, ...]:
    """Return the histogram of one window's brightness in tenths."""
    values = np.clip(random.normal(mean, 0.08, answers), 0.0, 0.999)
    return tuple(np.histogram(values, 10, (0.0, 1.0))[0].tolist())


def reference(random: np.random.Generator, means: list[float]) -> ReferenceRange:
    """Return the reference of a day's windows."""
    counted = first_window(window(random, means[0]))
    for mean in means[1:]:
        counted = counted.with_window(window(random, mean))
    return counted


def alarm(random: np.random.Generator, counted: ReferenceRange, means: list[float]) -> int | None:
    """Return the number of the window at which the detector alarms, None if it does not."""
    detector = Detector()
    for number, mean in enumerate(means):
        detector = detector.updated(counted, window(random, mean), 0.05, BOUND)
        if detector.drifting:
            return number
    return None


def test_darker_images_are_found_within_an_hour_of_five_minute_windows() -> None:
    random = np.random.default_rng(1)
    counted = reference(random, [0.45] * 288)

    found = alarm(random, counted, [0.45] * 100 + [0.15] * 12)

    assert found is not None
    assert found >= 100


@pytest.mark.parametrize("seed", range(3))
def test_a_month_of_days_like_those_of_the_reference_raises_no_alarm(seed: int) -> None:
    random = np.random.default_rng(seed)
    day = (0.45 + 0.1 * np.sin(np.linspace(0.0, 2.0 * np.pi, 288))).tolist()
    counted = reference(random, day)

    assert alarm(random, counted, day * 30) is None


def test_a_reference_without_nights_takes_the_first_night_for_drift() -> None:
    random = np.random.default_rng(1)
    counted = reference(random, [0.5] * 144)

    assert alarm(random, counted, [0.2] * 144) is not None


def test_what_is_within_the_tolerance_is_no_drift_however_long_it_lasts() -> None:
    counted = ReferenceRange((500.0, 500.0), (0.5,), (0.5,), windows=100)
    detector = Detector()

    for _ in range(10_000):
        detector = detector.updated(counted, (54.0, 46.0), 0.05, BOUND)

    assert not detector.drifting
    assert detector.log_evidence == 0.0


def test_a_single_strange_window_raises_no_alarm() -> None:
    random = np.random.default_rng(1)
    counted = reference(random, [0.45] * 288)

    assert alarm(random, counted, [0.45] * 10 + [0.05] + [0.45] * 100) is None


def test_drift_ends_when_windows_are_as_before() -> None:
    random = np.random.default_rng(1)
    counted = reference(random, [0.45] * 288)
    detector = Detector()
    for mean in [0.15] * 30:
        detector = detector.updated(counted, window(random, mean), 0.05, BOUND)
    assert detector.drifting

    for mean in [0.45] * 20:
        detector = detector.updated(counted, window(random, mean), 0.05, BOUND)

    assert not detector.drifting


def test_on_the_edge_of_the_null_hypothesis_the_mean_wealth_does_not_grow() -> None:
    """The bets at the limit itself: the share is 1 or 0, with a mean of exactly what is allowed."""
    counted = ReferenceRange((30.0, 70.0), (0.3,), (0.3,), windows=100)
    random = np.random.default_rng(7)
    at_limit = Detector(mean=(0.9,), windows=50)

    factors = []
    for _ in range(20_000):
        below = float(random.random() < 0.35)
        after = at_limit.updated(counted, (below, 1.0 - below), 0.05, 100.0)
        factors.append(math.exp(after.log_evidence))

    # Each starts from a wealth of 1; the standard error of the mean factor is some 0.006.
    assert np.mean(factors) == pytest.approx(1.0, abs=0.03)


def test_equal_distributions_do_not_diverge_and_others_do() -> None:
    same, other = bucket_shares((10, 20, 70)), bucket_shares((0, 30, 70))

    assert psi(same, same) == kl_divergence(same, same) == 0.0
    assert psi(same, other) == pytest.approx(0.1 * math.log(0.1 / 1e-4) + 0.1 * math.log(1.5), rel=0.01)
    assert kl_divergence(same, other) == pytest.approx(0.3 * math.log(1.5), rel=0.02)


def test_more_histograms_and_rarer_false_alarms_need_more_evidence() -> None:
    assert log_bound(0.1, WINDOWS_PER_MONTH, 20) == pytest.approx(BOUND + math.log(20))
    assert log_bound(0.01, WINDOWS_PER_MONTH, 1) == pytest.approx(BOUND + math.log(10))
