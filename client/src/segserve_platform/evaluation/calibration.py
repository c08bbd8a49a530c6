"""Expected calibration error (ECE): how far a model's confidences are from how often it is right.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: confidences are put into bins of equal width; the error
is the distance of a bin's mean confidence from its share of right answers, the mean of the bins by their weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as coco

from segserve_builder.scoring.quality import FEWEST_CALIBRATED, Regions

BINS: Final = 15


def calibration_error(confidences: ArrayLike, right: ArrayLike, weights: ArrayLike = 1.0) -> float:
    """Return the ECE, 0 to 1, of confidences from 0 to 1, each with the share that is right of what it is said of.

    `weights` are how much each counts. Returns NaN if there are none.
    """
    sure, share = np.clip(np.asarray(confidences, np.float64), 0, 1), np.asarray(right, np.float64)
    counted = np.broadcast_to(np.asarray(weights, np.float64), sure.shape)
    if not counted.sum():
        return math.nan
    # A bin holds its upper end, the first one 0 as well.
    bins = np.maximum(np.ceil(sure * BINS).astype(int) - 1, 0)
    return float(np.abs(np.bincount(bins, (sure - share) * counted, BINS)).sum() / counted.sum())


def pixel_calibration(labels: Sequence[Regions], answers: Sequence[Regions]) -> float:
    """Return the ECE of label maps whose `scores` are the mean confidence of each class in its image.

    The pixels of a class in an image count as equally sure. Those that are not labelled do not count.
    """
    confidences, right, weights = list[float](), list[float](), list[float]()
    for label, answer in zip(labels, answers, strict=True):
        assert answer.scores is not None
        size = {"size": list(label.size)}
        true = {number: {**size, "counts": mask} for number, mask in zip(label.classes, label.masks or (), strict=True)}
        counted = [] if label.counted is None else [{**size, "counts": label.counted}]
        for number, mask, score in zip(answer.classes, answer.masks or (), answer.scores.tolist(), strict=True):
            shown = coco.merge([{**size, "counts": mask}, *counted], intersect=True)
            pixels = float(coco.area(shown))
            both = float(coco.area(coco.merge([shown, true[number]], intersect=True))) if number in true else 0.0
            if pixels:
                confidences.append(score)
                right.append(both / pixels)
                weights.append(pixels)
    return calibration_error(confidences, right, weights)


def object_calibration(evaluated: Iterable[Mapping[str, Any] | None]) -> float:
    """Return the ECE of scores of objects, from pycocotools' evaluations of images; NaN of fewer than a hundred.

    An object is right if it matches a labelled one at an IoU of 0.5. Those in crowds do not count.
    """
    confidences, right = list[float](), list[bool]()
    for each in evaluated:
        if each is not None:
            counts = ~each["dtIgnore"][0].astype(bool)
            confidences += np.asarray(each["dtScores"])[counts].tolist()
            right += (each["dtMatches"][0][counts] > 0).tolist()
    return calibration_error(confidences, right) if len(confidences) >= FEWEST_CALIBRATED else math.nan
