"""Qualities from 0 to 1 with the interval that a bootstrap of the images gives them, and `Evaluation`s made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_operator.api.evaluation import (
    MAX_EVALUATED_CLASSES,
    MAX_EVALUATED_SLICES,
    Estimate,
    Evaluation,
    SliceEvaluation,
)

if TYPE_CHECKING:
    from segserve_builder.scoring.replay import GoldenScores

_MEANS: Final = 2000
RESAMPLES: Final = 500
"""Samples of the images for the intervals of metrics and classes, of which each is scored as a whole."""
_WITHOUT_INTERVAL: Final = frozenset({"ece"})
"""Samples of the images have larger calibration errors than the images have, of calibrated scores most of all."""


def evaluation_of(
    scores: GoldenScores, names: Mapping[int, str], revision: str, golden_sha256: str, user: str
) -> Evaluation:
    """Return what was measured of a revision; what cannot be measured is left out.

    Of more classes or slices than an evaluation holds, those with the fewest points are kept.
    """
    quality, resampled = scores.quality, scores.resampled
    metrics = estimates(
        (
            (name, value, [each.means.get(name, math.nan) for each in resampled])
            for name, value in quality.means.items()
        ),
        without_interval=_WITHOUT_INTERVAL,
    )
    classes = estimates(
        (names.get(number, str(number)), value, [each.classes.get(number, math.nan) for each in resampled])
        for number, value in quality.classes.items()
    )
    by_slice: dict[str, list[float]] = {}
    for label, score in zip(scores.slices, scores.images, strict=True):
        if label:
            by_slice.setdefault(label, []).append(score)
    slices = {name: SliceEvaluation(images=len(own), score=mean_estimate(own)) for name, own in by_slice.items()}
    worst = sorted(classes, key=lambda name: classes[name].mean)[:MAX_EVALUATED_CLASSES]
    worst_slices = sorted(slices, key=lambda name: slices[name].score.mean)[:MAX_EVALUATED_SLICES]
    return Evaluation(
        revision=revision,
        golden_sha256=golden_sha256,
        evaluated_at=datetime.now(UTC),
        evaluated_by=user[:256],
        images=len(scores.images),
        score=mean_estimate(scores.images),
        metrics=metrics,
        classes={name: value for name, value in classes.items() if name in worst},
        slices={name: value for name, value in slices.items() if name in worst_slices},
    )


def described(model: str, evaluation: Evaluation) -> Iterator[str]:
    """Yield the lines for people."""
    yield f"{model} {evaluation.revision} on {evaluation.images} labelled images"
    yield f"  {'score per image':<20} {evaluation.score}"
    for name, estimate in (*evaluation.metrics.items(), *evaluation.classes.items()):
        yield f"  {name:<20} {estimate}"
    for name, own in evaluation.slices.items():
        yield f"  {name:<20} {own.score}, {own.images} images"


def mean_estimate(scores: Sequence[float], *, interval: bool = True) -> Estimate:
    """Return the mean of images' scores; an image without a readable answer is worth nothing."""
    known = np.nan_to_num(np.array(scores, np.float64))
    if not interval:
        return Estimate(mean=round(float(known.mean()), 4))
    numbers = np.random.default_rng(0)
    # One sample after the other: all samples of many images would fill the memory.
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
