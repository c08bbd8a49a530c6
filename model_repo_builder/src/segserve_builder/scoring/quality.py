"""Quality of answers measured against labels: one score per image, and per class and as the usual means over a set.

Semantic: an image's quality is its mean intersection over union (IoU) of the classes that are in its labels or in its
answer; a class's is over all images' pixels together, the mean IoU the mean of those, and recall the mean share of a
class's pixels that were found.

Objects (instances, panoptic segments, boxes, keypoints): an image's quality, and a class's, is the panoptic quality of
Kirillov et al. (2019), `sum of IoU of matched / (matched + (missed + false) / 2)`, with COCO's greedy matching at 0.5
where the likeness is the IoU of masks or of boxes, or the object keypoint similarity. Recall is the share of labelled
objects that were found, and AP the average precision of COCO (0.50 to 0.95, 101 points, the 100 best objects of a class
in an image, or all if an image has more labelled ones: the limit would bound what can be reached). ECE is
the expected calibration error of Naeini et al. (2015) for detections, as in Kueppers et al. (2020): how far scores are
from the share of objects that match a labelled one, on average over tenths of the scores' range.

Boundary IoU of Cheng et al. (2021) is the IoU of the bands inside of two masks' outlines, whose width is 2 % of the
image's diagonal: it says whether outlines are right, also of large regions. Objects are then as alike as the lesser of
the IoU of their masks and the IoU of their bands.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pycocotools import mask as coco

from segserve_common.rle import run_lengths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MATCH: Final = 0.5
THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
RECALLS: Final = np.linspace(0.0, 1.0, 101)
MOST_OBJECTS: Final = 100
CALIBRATION_BINS: Final = 10
FEWEST_CALIBRATED: Final = 100
"""Objects below which the error would be due to chance: a bin of ten objects is off by 0.15 if all is well."""
SIGMAS: Final = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000.0
"""COCO's falloffs of a person's 17 keypoints; other objects' keypoints have `SIGMA`."""
SIGMA: Final = 0.05
BAND: Final = 0.02
"""Width of the band inside of an outline, as a share of the image's diagonal."""


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions of an image, labelled or predicted: `classes` [N], and of each at least one of mask, box and points.

    `size` is (height, width), `masks` [N] COCO's compressed RLE counts of that size, `boxes` float [N, 4] as x1 y1 x2
    y2 in pixels, `scores` float [N], `points` float [N, K, 3] as x, y and visibility (labels: 0 is not labelled) or
    score. A semantic image has at most one mask per class. `counted` are the RLE counts of the pixels that have a
    label, None if all have one.
    """

    size: tuple[int, int]
    classes: tuple[int, ...]
    masks: tuple[bytes, ...] | None = None
    boxes: Floats | None = None
    scores: Floats | None = None
    points: Floats | None = None
    counted: bytes | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of one revision's answers: `images` [image], `classes` by id, `means` by metric: iou and recall, for
    objects also ap, and ece for a hundred or more. Where outlines are compared, `outlines` by id, and boundaryIou.

    All within 0 to 1; an image without anything to find or found has 1. Classes that no label shows are left out, and
    what cannot be measured is NaN.
    """

    images: tuple[float, ...]
    classes: Mapping[int, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    outlines: Mapping[int, float] = field(default_factory=dict)


def score_semantic(labels: Sequence[Regions], answers: Sequence[Regions]) -> Quality:
    """Score label maps: `answers[i]` is to `labels[i]`'s image, of its size."""
    return next(score_samples("semantic", labels, answers, [range(len(labels))]))


def score_objects(labels: Sequence[Regions], answers: Sequence[Regions]) -> Quality:
    """Score objects: `answers[i]` is to `labels[i]`'s image.

    They are compared by points where labels have them, else by masks, else by boxes. Answers without scores are taken
    in their order, and have neither AP nor ECE.
    """
    return next(score_samples("objects", labels, answers, [range(len(labels))]))


def score_samples(
    kind: Literal["semantic", "objects"],
    labels: Sequence[Regions],
    answers: Sequence[Regions],
    samples: Iterable[Sequence[int]],
    *,
    false_classes: bool = False,
    most: int | None = MOST_OBJECTS,
    above_match: bool = False,
    outlines: bool = False,
) -> Iterator[Quality]:
    """Yield the quality on each sample of the images, by number and with repetitions, as the bootstrap draws them.

    Labels and answers are compared once. With `false_classes` a class that only answers show counts as one with a
    quality of 0, as in COCO's panoptic quality and the usual mean IoU. In each class, the `most` best objects of an
    image count, or all if an image has more labelled ones. With `above_match` a likeness of exactly 0.5 is not a match,
    as in COCO's panoptic quality. With `outlines` these are compared as well, where labels and answers have masks.
    """
    pairs = list(zip(labels, answers, strict=True))
    scored = (*labels, *answers) if false_classes else labels
    known = sorted({number for regions in scored for number in regions.classes})
    outlines = outlines and all(each.masks is not None and each.points is None for each in (*labels, *answers))
    if kind == "semantic":
        counts = [_pixel_counts(label, answer) for label, answer in pairs]
        edges = [_pixel_counts(*_bands(label, answer)) for label, answer in pairs if outlines]
        for sample in samples:
            quality = _semantic([counts[index] for index in sample], known, false_classes=false_classes)
            if edges:
                drawn = [edges[index] for index in sample]
                quality = _with_outlines(quality, _semantic(drawn, known, false_classes=false_classes).classes)
            yield quality
        return

    if most is not None and most_of_a_class(labels) > most:
        most = None

    def matched(label: Regions, answer: Regions, bands: tuple[Regions, Regions] | None = None) -> dict[int, _Matching]:
        return {n: _matching(label, answer, n, most, above_match=above_match, bands=bands) for n in known}

    found = [matched(*pair) for pair in pairs]
    outlined = [matched(*pair, _bands(*pair)) for pair in pairs if outlines]
    for sample in samples:
        quality = _objects([found[index] for index in sample], [answers[index] for index in sample], known)
        if outlined:
            by_class = {number: _panoptic([outlined[index][number] for index in sample]) for number in known}
            quality = _with_outlines(quality, by_class)
        yield quality


def most_of_a_class(images: Iterable[Regions]) -> int:
    """Return the largest number of objects that one image has of one class."""
    return max((count for regions in images for count in Counter(regions.classes).values()), default=0)


def _with_outlines(quality: Quality, classes: Mapping[int, float]) -> Quality:
    return replace(quality, means={**quality.means, "boundaryIou": _mean(list(classes.values()))}, outlines=classes)


def _bands(label: Regions, answer: Regions) -> tuple[Regions, Regions]:
    """Return the bands of the masks of both, without the pixels that do not count."""
    return _banded(label, label.counted), _banded(answer, label.counted)


def _banded(regions: Regions, counted: bytes | None) -> Regions:
    distance = max(1, round(BAND * math.hypot(*regions.size)))
    masks = []
    for mask in regions.masks or ():
        rle = _rle(regions.size, mask)
        if counted is not None:
            rle = coco.merge([rle, _rle(regions.size, counted)], intersect=True)
        masks.append(_band(rle, distance))
    return replace(regions, masks=tuple(masks))


def _band(rle: dict[str, Any], distance: int) -> bytes:
    """Return the band of one mask; work and memory depend on the columns of its box."""
    height, width = rle["size"]
    x, y, across, down = (int(each) for each in coco.toBbox(rle))
    if not across:
        return bytes(rle["counts"])
    ends = np.cumsum(run_lengths(rle["counts"], height, width))
    runs = np.diff(np.clip(ends - x * height, 0, across * height), prepend=0)
    columns = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs).reshape(across, height)
    patch = columns[:, y : y + down].astype(np.bool_)
    columns[:, y : y + down] = patch & ~_eroded(patch, distance)
    # The first run, and one in an odd place at the end, are of pixels outside of the mask, as those beside the box are.
    counts = [int(run) for run in run_lengths(coco.encode(columns.T)["counts"], height, across)]
    counts[0] += x * height
    if after := (width - x - across) * height:
        counts += [0] * (len(counts) % 2 == 0)
        counts[-1] += after
    (found,) = coco.frPyObjects([{"size": [height, width], "counts": counts}], height, width)
    return bytes(found["counts"])


def _eroded(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return the pixels whose square of `distance` to each side is all in the mask, which ends at the array's edge."""
    found, side = np.pad(mask, distance), 2 * distance + 1
    for _ in range(2):
        length = 1
        while length < side:
            step = min(length, side - length)
            found, length = found[step:] & found[:-step], length + step
        found = found.T
    return found


def _semantic(
    counts: Sequence[Mapping[int, tuple[float, float, float]]], known: Sequence[int], *, false_classes: bool
) -> Quality:
    images = tuple(_mean([both / either for both, either, _ in count.values() if either], 1.0) for count in counts)
    totals = {number: np.sum([count.get(number, (0, 0, 0)) for count in counts], axis=0) for number in known}
    totals = {number: total for number, total in totals.items() if total[1 if false_classes else 2]}
    classes = {number: float(both / either) for number, (both, either, _) in totals.items()}
    recall = _mean([both / labelled for both, _, labelled in totals.values() if labelled])
    return Quality(images, classes, {"iou": _mean(list(classes.values())), "recall": recall})


def _objects(found: Sequence[Mapping[int, _Matching]], answers: Sequence[Regions], known: Sequence[int]) -> Quality:
    others = [_others(answer, frozenset(known)) for answer in answers]
    images = tuple(
        _panoptic([own[number] for number in known], false=false, empty=1.0)
        for own, false in zip(found, others, strict=True)
    )
    by_class = {number: [own[number] for own in found] for number in known}
    classes = {number: _panoptic(matchings) for number, matchings in by_class.items()}
    every = [matching for matchings in by_class.values() for matching in matchings]
    labelled = sum(matching.labelled for matching in every)
    means = {
        "iou": _mean(list(classes.values())),
        "recall": float(sum(len(matching.matched) for matching in every) / labelled) if labelled else np.nan,
    }
    if all(answer.scores is not None for answer in answers):
        means["ap"] = _mean([_average_precision(matchings) for matchings in by_class.values()])
        unknown = [_scores_of_others(answer, frozenset(known)) for answer in answers]
        if (error := _calibration_error(every, np.concatenate([np.zeros(0), *unknown]))) is not None:
            means["ece"] = error
    return Quality(images, classes, means)


@dataclass(frozen=True, slots=True)
class _Matching:
    """One class in one image: scores [D] in falling order, likenesses of the objects matched at 0.5, and which of the
    D found objects match a labelled one at each threshold [T, D]."""

    labelled: int
    scores: Floats
    matched: Floats
    hits: NDArray[np.bool_]


def _pixel_counts(label: Regions, answer: Regions) -> dict[int, tuple[float, float, float]]:
    """Return by class the pixels of intersection, union and label."""
    if label.size != answer.size:
        raise ValueError(f"the answer is of {answer.size}; its labels are of {label.size}")
    true, seen = _by_class(label, label.counted), _by_class(answer, label.counted)
    empty = _rle(label.size, _nothing(label.size))
    counts = {}
    for number in true.keys() | seen.keys():
        both = [true.get(number, empty), seen.get(number, empty)]
        labelled, answered = (float(area) for area in coco.area(both))
        shared = float(coco.area(coco.merge(both, intersect=True)))
        counts[number] = (shared, labelled + answered - shared, labelled)
    return counts


def _by_class(regions: Regions, counted: bytes | None) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for number, mask in zip(regions.classes, regions.masks or (), strict=True):
        rle = _rle(regions.size, mask)
        found[number] = coco.merge([found[number], rle]) if number in found else rle
    if counted is None:
        return found
    within = _rle(regions.size, counted)
    return {number: coco.merge([rle, within], intersect=True) for number, rle in found.items()}


def _matching(
    label: Regions,
    answer: Regions,
    number: int,
    most: int | None,
    *,
    above_match: bool,
    bands: tuple[Regions, Regions] | None = None,
) -> _Matching:
    """Match the found objects of a class with the labelled ones, as COCO does: best score first.

    With the bands of both, two are as alike as the lesser likeness of masks and of bands says.
    """
    true = np.flatnonzero(np.array(label.classes) == number)
    seen = np.flatnonzero(np.array(answer.classes) == number)
    scores = answer.scores[seen] if answer.scores is not None else -np.arange(len(seen), dtype=float)
    order = np.argsort(-scores, kind="stable")[:most]
    likeness = _likeness(label, answer, true, seen[order])
    if bands is not None:
        likeness = np.minimum(likeness, _likeness(*bands, true, seen[order]))
    hits = np.zeros((len(THRESHOLDS), len(order)), bool)
    matched: list[float] = []
    for row, threshold in zip(hits, THRESHOLDS, strict=True):
        free = np.ones(len(true), bool)
        for position, values in enumerate(likeness):
            values = np.where(free, values, -1.0)
            best = len(values) - 1 - int(np.argmax(values[::-1])) if len(values) else -1
            if best >= 0 and values[best] >= min(threshold, 1 - 1e-10) and not (above_match and values[best] <= MATCH):
                free[best], row[position] = False, True
                if threshold == MATCH:
                    matched.append(float(values[best]))
    return _Matching(len(true), scores[order], np.array(matched), hits)


def _likeness(label: Regions, answer: Regions, true: NDArray[Any], seen: NDArray[Any]) -> Floats:
    """Return the similarity of each found and each labelled object, 0 to 1, shaped [found, labelled]."""
    if not len(true) or not len(seen):
        return np.zeros((len(seen), len(true)))
    if label.points is not None and answer.points is not None and answer.points.shape[1:] == label.points.shape[1:]:
        return _point_similarity(label, answer, true, seen)
    if label.masks is not None and answer.masks is not None:
        if label.size != answer.size:
            raise ValueError(f"the answer is of {answer.size}; its labels are of {label.size}")
        found = [_rle(answer.size, answer.masks[index]) for index in seen]
        marked = [_rle(label.size, label.masks[index]) for index in true]
        return np.asarray(coco.iou(found, marked, [0] * len(true)), np.float64)
    if label.boxes is None or answer.boxes is None:
        raise ValueError("labels and answer have neither masks nor boxes in common")
    boxes = _corner_and_size(answer.boxes[seen]), _corner_and_size(label.boxes[true])
    return np.asarray(coco.iou(*boxes, [0] * len(true)), np.float64)


def _point_similarity(label: Regions, answer: Regions, true: NDArray[Any], seen: NDArray[Any]) -> Floats:
    """Return COCO's object keypoint similarity; an object without labelled points has similarity 0."""
    assert label.points is not None
    assert answer.points is not None
    expected, found = label.points[true], answer.points[seen]
    sigmas = SIGMAS if expected.shape[1] == len(SIGMAS) else np.full(expected.shape[1], SIGMA)
    squared = ((found[:, None, :, :2] - expected[None, :, :, :2]) ** 2).sum(-1)
    exponent = squared / (2 * sigmas) ** 2 / (_areas(label)[true][None, :, None] + np.spacing(1)) / 2
    visible = expected[None, :, :, 2] > 0
    return np.asarray((np.exp(-exponent) * visible).sum(-1) / np.maximum(visible.sum(-1), 1), np.float64)


def _areas(label: Regions) -> Floats:
    """Return the area of each object: its mask's area, else the average part of a box that a body covers."""
    if label.masks is not None:
        return np.asarray(coco.area([_rle(label.size, mask) for mask in label.masks]), np.float64)
    if label.boxes is None:
        raise ValueError("labelled points need a mask or a box, from which their object's size is known")
    return np.asarray(np.prod(label.boxes[:, 2:] - label.boxes[:, :2], axis=1) * 0.53, np.float64)


def _panoptic(matchings: Sequence[_Matching], false: int = 0, empty: float = float("nan")) -> float:
    """Return the panoptic quality over all matchings, with `false` additional false positives.

    It is `empty` if nothing is labelled or found.
    """
    shared = sum(float(matching.matched.sum()) for matching in matchings)
    labelled = sum(matching.labelled for matching in matchings)
    found = sum(len(matching.scores) for matching in matchings) + false
    return shared / ((labelled + found) / 2) if labelled + found else empty


def _others(answer: Regions, known: frozenset[int]) -> int:
    """Return the number of objects of classes that no label contains."""
    return sum(number not in known for number in answer.classes)


def _scores_of_others(answer: Regions, known: frozenset[int]) -> Floats:
    """Return the scores of the objects of classes that no label contains: all are false."""
    assert answer.scores is not None
    return answer.scores[[number not in known for number in answer.classes]]


def _calibration_error(matchings: Sequence[_Matching], false_scores: Floats) -> float | None:
    """Return the expected calibration error (0 to 1) at the match of 0.5; None with too few objects."""
    scores = np.concatenate([*(matching.scores for matching in matchings), false_scores])
    if len(scores) < FEWEST_CALIBRATED:
        return None
    at_match = int(np.argmin(np.abs(THRESHOLDS - MATCH)))
    hits = np.concatenate([*(matching.hits[at_match] for matching in matchings), np.zeros(len(false_scores), bool)])
    bins = np.minimum((np.clip(scores, 0.0, 1.0) * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    surplus = np.bincount(bins, weights=scores - hits, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(scores))


def _average_precision(matchings: Sequence[_Matching]) -> float:
    """Return COCO's AP of one class over all images; NaN if none is labelled."""
    labelled = sum(matching.labelled for matching in matchings)
    if not labelled:
        return float("nan")
    order = np.argsort(-np.concatenate([matching.scores for matching in matchings]), kind="stable")
    hits = np.concatenate([matching.hits for matching in matchings], axis=1)[:, order]
    true = np.cumsum(hits, axis=1, dtype=np.float64)
    recall, precision = true / labelled, true / np.arange(1, hits.shape[1] + 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for reached, values in zip(recall, precision, strict=True):
        at = np.searchsorted(reached, RECALLS, side="left")
        total += float(np.append(values, 0.0)[at].mean())
    return total / len(THRESHOLDS)


def _rle(size: tuple[int, int], counts: bytes) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


def _nothing(size: tuple[int, int]) -> bytes:
    height, width = size
    (rle,) = coco.frPyObjects([{"size": [height, width], "counts": [height * width]}], height, width)
    counts: bytes = rle["counts"]
    return counts


def _corner_and_size(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _mean(numbers: Sequence[float], empty: float = float("nan")) -> float:
    """Return the mean of all values except NaN; `empty` if there are none."""
    known = [number for number in numbers if not np.isnan(number)]
    return float(np.mean(known)) if known else empty
