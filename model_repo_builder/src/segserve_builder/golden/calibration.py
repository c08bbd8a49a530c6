"""Temperature scaling: the temperature that makes a network's confidence agree with its accuracy.

After Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017 (arXiv:1706.04599).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.values import Float32

COLDEST: Final = 0.01
HOTTEST: Final = 100.0
HALVINGS: Final = 34
"""Halvings of the logarithmic range, to a billionth of it."""


def rescaled(scores: Float32, temperature: float) -> Float32:
    """Return sigmoid(logit(score) / temperature) of probabilities, float32 (N,); 0 stays 0 and 1 stays 1."""
    likely = np.asarray(scores, np.float64)
    for_it, against = likely ** (1 / temperature), (1 - likely) ** (1 / temperature)
    scaled: Float32 = (for_it / (for_it + against)).astype(np.float32)
    return scaled


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any], ignore: int | None = None) -> float:
    """Return the temperature, from 0.01 to 100, that makes the labels most likely.

    `logits` are floats (N, C) of a softmax, or (N,) of a sigmoid; `labels` are class ids, integers (N,), of which those
    equal to `ignore` are left out. The loss, the mean of -log(probability of the label), is convex in 1 / temperature,
    so that halving finds its minimum. Logits that are never wrong give the lowest temperature. Raises `ValueError` for
    shapes that do not match, for labels that are not a class, and if no label is left.
    """
    stacked, truth = _labelled(logits, labels, ignore)
    own = np.take_along_axis(stacked, truth[:, None], axis=1)[:, 0]
    cold, hot = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (cold + hot) / 2
        expected = (_softmax(stacked / np.exp(middle)) * stacked).sum(axis=1)
        # The slope of the loss over 1 / temperature: where a colder one would do better, it is negative.
        cold, hot = (cold, middle) if (expected - own).mean() <= 0 else (middle, hot)
    return float(np.exp((cold + hot) / 2))


def negative_log_likelihood(
    logits: NDArray[Any], labels: NDArray[Any], temperature: float = 1.0, ignore: int | None = None
) -> float:
    """Return the mean of -log(probability of the label); arguments and errors are as for `fit_temperature`.

    `logits` are floats (N, C) or (N,), `labels` integers (N,).
    """
    stacked, truth = _labelled(logits, labels, ignore)
    scaled = stacked / temperature
    whole = np.log(np.exp(scaled).sum(axis=1))
    return float((whole - np.take_along_axis(scaled, truth[:, None], axis=1)[:, 0]).mean())


def confidence_and_correct(
    logits: NDArray[Any], labels: NDArray[Any], temperature: float = 1.0, ignore: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probability of the best class, and whether it is the label, of all but the ignored (N,).

    Arguments and errors are as for `fit_temperature`; ties go to the first class. They are float64 and bool.
    """
    stacked, truth = _labelled(logits, labels, ignore)
    return _softmax(stacked / temperature).max(axis=1), stacked.argmax(axis=1) == truth


def expected_calibration_error(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 15) -> float:
    """Return the mean over all answers of |confidence - accuracy|, both taken as means of equally wide bins.

    `confidence` (N,) from 0 to 1, `correct` (N,) of booleans; bin i holds what is above i / bins, up to (i + 1) /
    bins. Raises `ValueError` if there are no answers, or no bins.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence) or bins < 1:
        raise ValueError(
            f"confidence {confidence.shape}, correct {correct.shape}, {bins} bins; expected (N,), (N,), 1+"
        )
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(number, confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _labelled(
    logits: NDArray[Any], labels: NDArray[Any], ignore: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the logits (N, C), the best of each being 0, and the labels (N,) of all but the ignored."""
    if logits.ndim not in (1, 2) or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits have shape {logits.shape}, labels {labels.shape}; expected (N, C) or (N,), and (N,)")
    counted = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    truth, values = labels[counted].astype(np.int64), logits[counted].astype(np.float64)
    if values.ndim == 1 or values.shape[1] == 1:
        values = np.stack([np.zeros(len(values)), values.reshape(-1)], axis=1)
    if not len(truth):
        raise ValueError("there are no labels, or all of them are ignored")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        observed = f"labels reach from {truth.min()} to {truth.max()}"
        raise ValueError(f"{observed}; {values.shape[1]} classes have the ids 0 to {values.shape[1] - 1}")
    return values - values.max(axis=1, keepdims=True), truth


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities (N, C) of logits whose best is 0."""
    parts = np.exp(logits)
    whole: NDArray[np.float64] = parts / parts.sum(axis=1, keepdims=True)
    return whole
