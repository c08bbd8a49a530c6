"""Temperature scaling against scipy's optimiser and the definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.golden.calibration import (
    confidence_and_correct,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    rescaled,
)


def drawn(n: int, classes: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with the probabilities of the logits divided by the temperature."""
    from scipy import special

    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 3
    likely = special.softmax(logits / temperature, axis=1).cumsum(axis=1)
    labels = (rng.random((n, 1)) > likely[:, :-1]).sum(axis=1)
    return logits.astype(np.float32), labels


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.floats(0.2, 8), st.integers(0, 2**32 - 1))
def test_the_temperature_is_the_one_that_scipy_finds(classes: int, temperature: float, seed: int) -> None:
    from scipy import optimize, special

    logits, labels = drawn(500, classes, temperature, seed)

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float(np.mean(special.logsumexp(scaled, axis=1) - scaled[np.arange(500), labels]))

    best = optimize.minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-9})

    fitted = fit_temperature(logits, labels)

    assert fitted == pytest.approx(np.exp(best.x), rel=1e-3)
    assert negative_log_likelihood(logits, labels, fitted) == pytest.approx(best.fun, abs=1e-9)


def test_the_temperature_that_labels_were_drawn_with_is_found_again_and_calibrates() -> None:
    logits, labels = drawn(60_000, 5, 2.5, 0)

    fitted = fit_temperature(logits, labels)

    assert fitted == pytest.approx(2.5, rel=0.02)
    before = expected_calibration_error(*confidence_and_correct(logits, labels))
    after = expected_calibration_error(*confidence_and_correct(logits, labels, fitted))
    assert before > 0.1
    assert after < 0.01


def test_a_sigmoid_is_fitted_like_a_softmax_of_two() -> None:
    logits, labels = drawn(2000, 2, 1.7, 3)

    single = fit_temperature(logits[:, 1].astype(np.float64) - logits[:, 0], labels)

    assert single == pytest.approx(fit_temperature(logits, labels))


def test_ignored_labels_have_no_say() -> None:
    logits, labels = drawn(2000, 4, 1.7, 4)
    spoilt = np.concatenate([labels, np.full(500, 255)])
    more = np.concatenate([logits, logits[:500] * 9])

    assert fit_temperature(more, spoilt, ignore=255) == fit_temperature(logits, labels)
    assert negative_log_likelihood(more, spoilt, ignore=255) == negative_log_likelihood(logits, labels)
    assert len(confidence_and_correct(more, spoilt, ignore=255)[0]) == 2000


@pytest.mark.parametrize(("right", "temperature"), [(True, 0.01), (False, 100)])
def test_logits_that_are_always_right_or_wrong_take_the_last_temperature(right: bool, temperature: float) -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)

    assert fit_temperature(logits, np.array([0, 1] if right else [1, 0])) == pytest.approx(temperature, rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "ignore", "says"),
    [
        (np.zeros((3, 2)), np.zeros(4, int), None, "logits have shape"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), None, "from 0 to 2; 2 classes"),
        (np.zeros((3, 2)), np.full(3, 9), 9, "all of them are ignored"),
        (np.zeros((0, 2)), np.zeros(0, int), None, "no labels"),
    ],
)
def test_what_does_not_fit_is_refused(logits: np.ndarray, labels: np.ndarray, ignore: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_temperature(logits, labels, ignore)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_calibration_error_is_that_of_its_definition(n: int, bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(n), rng.random(n) < 0.6
    edges = np.linspace(0, 1, bins + 1)

    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())

    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected)


def test_certain_answers_that_are_right_have_no_error_and_wrong_ones_the_greatest() -> None:
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    with pytest.raises(ValueError, match="expected"):
        expected_calibration_error(np.ones(0), np.ones(0, bool))


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 20), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_their_logits_over_the_temperature(temperature: float, seed: int) -> None:
    from scipy import special

    logits = np.random.default_rng(seed).normal(size=50) * 4
    scores = special.expit(logits).astype(np.float32)

    assert rescaled(scores, temperature) == pytest.approx(
        special.expit(special.logit(scores.astype(np.float64)) / temperature), abs=1e-7
    )
    assert rescaled(np.array([0, 0.5, 1], np.float32), temperature).tolist() == [0, 0.5, 1]
