"""The evaluation that `segserve samples evaluate` makes of scores, and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from segserve_operator.api.evaluation import (
    MAX_EVALUATED_CLASSES,
    MAX_EVALUATED_SLICES,
    Evaluation,
    SliceEvaluation,
)
from segserve_platform.evaluation.estimates import estimates, mean_estimate

if TYPE_CHECKING:
    from segserve_builder.scoring.replay import GoldenScores

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
