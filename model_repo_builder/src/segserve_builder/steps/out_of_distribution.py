"""How unlike the images that a model was made for an image is: a score of its answer, higher for stranger ones.

maxSoftmax is one less the mean probability of what was answered (Hendrycks and Gimpel, A Baseline for Detecting
Misclassified and Out-of-Distribution Examples, 2017): of the pixels' classes, or of objects and segments their scores.
energy is the mean of -T log(sum of exp(logit / T)) over pixels (Liu et al., Energy-based Out-of-distribution Detection,
2020). detail is the image's own fine detail, which noise and patterns raise (`ImageStatistics`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import BadImageError, ScoreError
from segserve_builder.spec.names import FLAGGED_WORDS
from segserve_builder.values import ClassMasks, ImageStatistics, LabelMap, Logits, Panoptic, ValueType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from segserve_builder.spec.model_spec import OutOfDistributionPolicy, OutOfDistributionScore
    from segserve_builder.steps.answer_metrics import Answer

MOST_LOGITS: Final = 2**14
"""Logits that are looked at: of all classes for each cell of a grid."""


class FlaggedImageError(BadImageError):
    """An image is too unlike the images that the model was made for, and the model refuses such images."""

    def __init__(self, score: float, spec: OutOfDistributionPolicy) -> None:
        super().__init__(
            f"the image is out of distribution: its score {spec.score} is {score:.4g}, allowed is at most "
            f"{spec.threshold:.4g} {FLAGGED_WORDS}"
        )


def check_score(score: OutOfDistributionScore, kind: ValueType, *, scored: bool = True) -> None:
    """Raise `ScoreError` if answers of this type have no such score.

    `scored` is whether the network gives more than labels.
    """
    if score in ("maxSoftmax", "energy") and not scored:
        raise ScoreError(f"outOfDistribution: the score {score} needs scores, and the network gives labels: use detail")
    if score == "energy" and kind is not ValueType.LABELS:
        raise ScoreError(
            f"outOfDistribution: the score energy needs logits of each pixel, so a last stage that gives "
            f"{ValueType.LABELS}; this one gives {kind}: use maxSoftmax or detail"
        )


def score_of(score: OutOfDistributionScore, answer: Answer, image: ImageStatistics | None) -> float | None:
    """Return an image's score; None if there is no evidence for it, as in an answer without objects.

    `image` are the statistics that detail is one of.
    """
    import numpy as np

    if score == "detail":
        return None if image is None else image.detail
    if isinstance(answer, LabelMap):
        if not answer.logits.values.size:
            return None
        logits = _sampled(answer.logits) / answer.logits.temperature
        highest = logits.max(0)
        sums = np.log(np.exp(logits - highest).sum(0)) + highest
        if score == "energy":
            return float(-answer.logits.temperature * sums.mean())
        return float(1.0 - np.exp(highest - sums).mean())
    if isinstance(answer, ClassMasks):
        return _doubt(answer.confidence, answer.areas)
    scores = [each.score for each in answer.segments] if isinstance(answer, Panoptic) else answer.scores
    return _doubt(np.asarray(scores, np.float64))


def conformal_threshold(scores: Sequence[float], false_positive_rate: float) -> float:
    """Return the threshold that a further image of the same kind exceeds with at most this probability.

    It is the ceil((n + 1) (1 - rate))-th smallest of n scores, the quantile of split conformal prediction with its
    correction for finite n (Vovk et al., Algorithmic Learning in a Random World, 2005). Raises `ValueError` if n is too
    small for any threshold.
    """
    rank = math.ceil(round((len(scores) + 1) * (1 - false_positive_rate), 9))
    if rank > len(scores):
        needed = math.ceil(round(1 / false_positive_rate, 9)) - 1
        raise ValueError(
            f"a false positive rate of {false_positive_rate:g} needs at least {needed} images with a score, "
            f"got {len(scores)}"
        )
    return sorted(scores)[rank - 1]


def _doubt(confidences: NDArray[Any], weights: NDArray[Any] | None = None) -> float | None:
    import numpy as np

    if not len(confidences) or (weights is not None and not weights.any()):
        return None
    return float(1.0 - np.average(confidences, weights=weights))


def _sampled(logits: Logits) -> NDArray[Any]:
    """Return the logits (C, h, w) of a grid of cells that the image covers; for a sigmoid those of both classes."""
    import numpy as np

    channels, height, width = logits.values.shape
    place = logits.transform
    rows = _covered(place.top, place.inner_height, place.input_height, height)
    columns = _covered(place.left, place.inner_width, place.input_width, width)
    inner = logits.values[:, rows, columns]
    step = math.ceil(math.sqrt(max(inner.size / MOST_LOGITS, 1.0)))
    points = inner[:, ::step, ::step].astype(np.float64)
    return points if channels > 1 else np.concatenate([np.zeros_like(points), points])


def _covered(start: int, length: int, whole: int, cells: int) -> slice:
    first = min(math.floor(start * cells / whole), cells - 1)
    return slice(first, max(math.ceil((start + length) * cells / whole), first + 1))
