"""How unlike the images that a model was made for an image is: a score of its answer, higher for stranger ones.

maxSoftmax is one less the mean probability of what was answered (Hendrycks and Gimpel, A Baseline for Detecting
Misclassified and Out-of-Distribution Examples, 2017): of the pixels' classes, or of objects and segments their scores.
energy is the mean of -T log(sum of exp(logit / T)) over pixels (Liu et al., Energy-based Out-of-distribution Detection,
2020). detail is the image's own fine detail, which noise and patterns raise (`ImageStatistics`), and blur lowers:
detailChange is by how much it differs from the usual one, |log(detail / usual)|, in either direction. featureDistance
is the Mahalanobis distance of the image's embedding (`steps.embedding`).
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import BadImageError, ScoreError
from segserve_builder.spec.model_spec import OF_DETAIL
from segserve_builder.spec.names import FLAGGED_WORDS
from segserve_builder.steps.embedding import MIN_USUAL, of_usual_images, whitened
from segserve_builder.values import ClassMasks, ImageStatistics, LabelMap, Logits, Panoptic, ValueType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from segserve_builder.spec.model_spec import Embedding, OutOfDistributionPolicy, OutOfDistributionScore
    from segserve_builder.steps.answer_metrics import Answer

MOST_LOGITS: Final = 2**14
"""Logits that are looked at, those of all classes for each cell of a grid."""


LEAST_DETAIL: Final = 2.0**-13
"""Detail of an image that has none, half a step of `ImageStatistics.detail`: it has a logarithm."""
USUAL_SHARE: Final = 4
"""One of so many usual images tells what detail is usual; the others find the threshold, as if it had been known."""


class FlaggedImageError(BadImageError):
    """An image is too unlike those that the model was made for, and the model refuses such ones."""

    def __init__(self, score: float, spec: OutOfDistributionPolicy) -> None:
        super().__init__(
            f"the image is out of distribution: its score {spec.score} is {score:.4g}, allowed is at most "
            f"{spec.threshold:.4g} {FLAGGED_WORDS}"
        )


def check_score(score: OutOfDistributionScore, kind: ValueType, *, embedded: bool, scored: bool = True) -> None:
    """Raise `ScoreError` if answers of this type have no such score, or it needs an embedding and none is declared.

    `scored` is whether the network gives more than labels.
    """
    if score in ("maxSoftmax", "energy") and not scored:
        raise ScoreError(f"outOfDistribution: the score {score} needs scores, and the network gives labels: use detail")
    if score == "energy" and kind is not ValueType.LABELS:
        raise ScoreError(
            f"outOfDistribution: the score energy needs logits of each pixel, so a last stage that gives "
            f"{ValueType.LABELS}; this one gives {kind}: use maxSoftmax or detail"
        )
    if score == "featureDistance" and not embedded:
        raise ScoreError("outOfDistribution: the score featureDistance needs spec.embedding, which is not set")


def score_of(
    score: OutOfDistributionScore,
    answer: Answer,
    image: ImageStatistics | None,
    usual_detail: float | None = None,
    embedding: NDArray[Any] | None = None,
) -> float | None:
    """Return an image's score; None where there is nothing to tell it from, as in an answer without objects.

    `image` are the statistics that detail is one of, `usual_detail` is what detailChange compares it with, and
    `embedding` are the coordinates of the image's.
    """
    import numpy as np

    if score == "featureDistance":
        return None if embedding is None else float(np.linalg.norm(embedding))
    if score in OF_DETAIL:
        if image is None:
            return None
        return image.detail if usual_detail is None else detail_change(image.detail, usual_detail)
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


def detail_change(detail: float, usual_detail: float) -> float:
    """Return the absolute logarithm of the ratio of an image's detail and the usual one."""
    return abs(math.log(max(detail, LEAST_DETAIL) / usual_detail))


def detail_change_threshold(details: Sequence[float], false_positive_rate: float) -> tuple[float, float]:
    """Return the usual detail and the conformal threshold of detailChange, of usual images' details.

    The usual detail is the median of every `USUAL_SHARE`-th one, and the threshold of the others. Raises `ValueError`
    if they are too few.
    """
    usual = max(median(details[::USUAL_SHARE]), LEAST_DETAIL) if details else LEAST_DETAIL
    changes = [detail_change(each, usual) for at, each in enumerate(details) if at % USUAL_SHARE]
    return usual, conformal_threshold(changes, false_positive_rate)


def usual_embedding(
    output: str, projections: NDArray[Any], false_positive_rate: float
) -> tuple[Embedding, list[float], float]:
    """Return the embedding of the first half of usual images, the distances of the others, and their threshold.

    Not of every second image: frames of one scene, which follow each other, would be in both halves. Raises
    `ValueError` if the images are too few, or all the same.
    """
    import numpy as np

    needed = 2 * max(MIN_USUAL, _needed(false_positive_rate))
    if len(projections) < needed:
        raise ValueError(
            f"an embedding, and its threshold for a false positive rate of {false_positive_rate:g}, need at least "
            f"{needed} images, got {len(projections)}"
        )
    half = len(projections) // 2
    embedding = of_usual_images(output, projections[:half])
    distances = np.linalg.norm(whitened(projections[half:], embedding), axis=1).tolist()
    return embedding, distances, conformal_threshold(distances, false_positive_rate)


def conformal_threshold(scores: Sequence[float], false_positive_rate: float) -> float:
    """Return the threshold that a further image of the same kind exceeds with at most this probability.

    It is the ceil((n + 1) (1 - rate))-th smallest of n scores, the quantile of split conformal prediction with its
    correction for finite n (Vovk et al., Algorithmic Learning in a Random World, 2005). Raises `ValueError` if n is too
    small for any threshold.
    """
    rank = math.ceil(round((len(scores) + 1) * (1 - false_positive_rate), 9))
    if rank > len(scores):
        raise ValueError(
            f"a false positive rate of {false_positive_rate:g} needs at least {_needed(false_positive_rate)} images "
            f"with a score, got {len(scores)}"
        )
    return sorted(scores)[rank - 1]


def _needed(false_positive_rate: float) -> int:
    """Return how many scores have a conformal threshold."""
    return math.ceil(round(1 / false_positive_rate, 9)) - 1


def _doubt(confidences: NDArray[Any], weights: NDArray[Any] | None = None) -> float | None:
    import numpy as np

    if not len(confidences) or (weights is not None and not weights.any()):
        return None
    return float(1.0 - np.average(confidences, weights=weights))


def _sampled(logits: Logits) -> NDArray[Any]:
    """Return the logits (C, h, w) of a grid of cells that the image covers; of a sigmoid those of both classes."""
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
