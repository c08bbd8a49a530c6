"""Scores of answers against labels: IoU and Dice, COCO's AP and AR, panoptic quality, with intervals.

AP and AR are pycocotools' own; AP counts the 100 best detections of a class in an image, as COCO's does, or all if an
image has more labelled objects of one. Intervals are quantiles of the scores of samples of the images (the bootstrap),
which are drawn with a fixed seed.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import area

from segserve.errors import DatasetError
from segserve.exports.samples import SampleResult
from segserve_builder.scoring.quality import FEWEST_CALIBRATED, Quality, Regions, score_samples
from segserve_platform.evaluation.datasets import Dataset, few
from segserve_platform.evaluation.estimates import Estimate, estimates
from segserve_platform.evaluation.regions import (
    NOT_LABELLED,
    Classes,
    answer_regions,
    box_of,
    counts_of,
    data_of,
    detections_beyond_coco,
    object_labels,
    pixel_labels,
    segment_labels,
    sure_detections,
    unknown_values,
    without_ignored,
)

Task: TypeAlias = Literal["semantic", "instance", "panoptic", "detection", "keypoints"]
Measure: TypeAlias = Literal["pixels", "segments", "masks", "boxes"]
Estimates: TypeAlias = Mapping[str, Estimate]
Samples: TypeAlias = Iterable[Sequence[int]]
"""The numbers of all images, and then of each sample."""
LabelPair: TypeAlias = tuple[Regions, Regions]
"""The labels of an image, and apart from them crowds, in which any number of objects may be found."""

MAIN: Final[Mapping[Measure, str]] = {"pixels": "miou", "segments": "pq", "masks": "ap", "boxes": "ap"}
"""The figure by which slices are compared."""
SIZES: Final = ("small", "medium", "large")
"""COCO's: below 32² pixels, below 96², and larger."""
_AREAS: Final = ("all", *SIZES)
_ALLOWED: Final[Mapping[Task, tuple[str, ...]]] = {
    "semantic": ("objects", "segments", "maps"),
    "panoptic": ("segments", "objects"),
    "instance": ("objects",),
    "detection": ("objects",),
    "keypoints": ("objects",),
}
_KINDS: Final = {"objects": "COCO annotations", "segments": "COCO panoptic annotations", "maps": "label maps"}
_INSTANCE_MAPS: Final = ", or maps of numbers of objects of one class (--classes), without classes.txt"
BINS: Final = 15


def calibration_error(confidences: ArrayLike, right: ArrayLike, weights: ArrayLike = 1.0) -> float:
    """Return the ECE, 0 to 1, of confidences from 0 to 1, each with the share that is right of what it is said of.

    `weights` are how much each counts. Returns NaN without any.
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

    The pixels of a class in an image count as equally sure. Pixels that are not labelled do not count.
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

    An object is right if it matches a labelled one at an IoU of 0.5. Objects in crowds do not count.
    """
    confidences, right = list[float](), list[bool]()
    for each in evaluated:
        if each is not None:
            counts = ~each["dtIgnore"][0].astype(bool)
            confidences += np.asarray(each["dtScores"])[counts].tolist()
            right += (each["dtMatches"][0][counts] > 0).tolist()
    return calibration_error(confidences, right) if len(confidences) >= FEWEST_CALIBRATED else math.nan


@dataclass(frozen=True, slots=True)
class DatasetScores:
    """Scores of a set of answers: over all, by the name of a class, and by the size of objects.

    `images` is the score of each image, 0 to 1: its mean IoU, or the panoptic quality of its objects; 0 without an
    answer. `labels` are the labels of each image as they were compared, `answers` what its score counts.
    """

    metrics: Estimates
    classes: Mapping[str, Estimates]
    images: tuple[float, ...]
    labels: tuple[Regions, ...]
    sizes: Mapping[str, Estimates] = field(default_factory=dict)
    answers: tuple[SampleResult | None, ...] = ()


def measure_of(task: Task, dataset: Dataset) -> Measure:
    """Return how answers of a task are compared with these labels; raises `DatasetError` if they cannot be."""
    if dataset.labels not in _ALLOWED[task] or (dataset.is_yolo and task == "panoptic"):
        raise DatasetError(
            f"models of the task {task} cannot be evaluated on "
            f"{'labels of YOLO' if dataset.is_yolo else _KINDS[dataset.labels]}; they need "
            f"{' or '.join(_KINDS[each] for each in _ALLOWED[task])}"
            f"{_INSTANCE_MAPS if dataset.labels == 'maps' and task != 'panoptic' else ''}"
        )
    if dataset.labels == "segments":
        return "pixels" if task == "semantic" else "segments"
    annotations = [each for image in dataset.images for each in image.annotations]
    without = sum(not each.get("segmentation") for each in annotations)
    if task == "semantic":
        if without:
            raise DatasetError(
                f"a semantic model needs masks; {without} of {len(annotations)} annotations have only boxes"
            )
        return "pixels"
    if task in ("detection", "keypoints") or (annotations and without == len(annotations)):
        return "boxes"
    if without:
        boxes = [
            image.name for image in dataset.images if any(not each.get("segmentation") for each in image.annotations)
        ]
        raise DatasetError(
            f"{without} of {len(annotations)} annotations have a box and no segmentation: {few(boxes)}; "
            "expected all or none"
        )
    return "masks"


def read_labels(measure: Measure, dataset: Dataset, classes: Classes) -> list[LabelPair]:
    """Return the labels of each image; raises `DatasetError` for those that cannot be read, and if nothing is labelled.

    255 in a label map means that a pixel is not labelled, unless it may be a class that no map shows.
    """
    if measure == "segments":
        labels = [segment_labels(image, classes) for image in dataset.images]
    elif measure == "pixels":
        labels = [(pixel_labels(dataset, image, classes), Regions(image.size, (), ())) for image in dataset.images]
    else:
        labels = [object_labels(image, classes, masks=measure == "masks") for image in dataset.images]
    if measure == "pixels" and dataset.labels == "objects":
        # Not the classes of the regions: background is wherever there is no object.
        shown = {int(each["category_id"]) for image in dataset.images for each in image.annotations} & classes.keys()
    else:
        shown = {number for own, _ in labels for number in own.classes}
    lacking = sorted(one.name for one in classes.values() if one.id not in shown)
    if not shown:
        crowds = sum(len(own.classes) for _, own in labels)
        advice = f"; {crowds} labels are crowds (iscrowd: 1, as CVAT writes for masks), which do not count"
        raise DatasetError(f"nothing is labelled: no image shows {' or '.join(lacking)}{advice if crowds else ''}")
    if dataset.labels == "maps" and lacking:
        for image, (own, _) in zip(dataset.images, labels, strict=True):
            if own.counted is not None and data_of(image) is None:
                raise DatasetError(
                    f"{unknown_values(image, dataset, [NOT_LABELLED])}. No image shows {', '.join(lacking)}: if "
                    f"{NOT_LABELLED} means it, write the class's id; else leave it out (--classes)"
                )
    return labels


def score(
    measure: Measure,
    dataset: Dataset,
    classes: Classes,
    labels: Sequence[LabelPair],
    answers: Sequence[SampleResult | None],
    *,
    resamples: int,
    only_main: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> DatasetScores:
    """Score the answer to each image of a data set; one that is missing found nothing.

    With `only_main` only what the figure `MAIN` needs is computed, so that each sample takes a tenth of the time.
    `progress` is called with the numbers of samples scored, and of all.
    """
    count = len(dataset.images)

    def drawn() -> Iterator[Sequence[int]]:
        numbers = np.random.default_rng(0)
        if progress is not None:
            progress(0, resamples)
        yield range(count)
        for done in range(1, resamples + 1):
            yield numbers.integers(0, count, count).tolist()
            if progress is not None:
                progress(done, resamples)

    counted = answers
    found = _answers(dataset, classes, answers, masks=measure != "boxes")
    if measure == "pixels":
        scores = _score_pixels(classes, [own for own, _ in labels], found, drawn())
        documents = [answer.document for answer in answers if answer is not None]
        if not only_main and all("score" in each for document in documents for each in document["annotations"]):
            scores = _with_calibration(scores, pixel_calibration([own for own, _ in labels], found))
    elif measure == "segments":
        things = frozenset(one.id for number, one in classes.items() if number in dataset.things)
        scores = _score_segments(classes, labels, found, drawn(), things)
    else:
        counted = [None if answer is None else sure_detections(answer) for answer in answers]
        sure = _answers(dataset, classes, counted, masks=measure == "masks")
        scores = _score_objects(
            dataset, classes, labels, found, sure, drawn(), masks=measure == "masks", only_main=only_main
        )
    images = [0.0 if answer is None else own for own, answer in zip(scores.images, answers, strict=True)]
    return replace(scores, images=tuple(images), answers=tuple(counted))


def score_slices(
    measure: Measure,
    dataset: Dataset,
    classes: Classes,
    labels: Sequence[LabelPair],
    answers: Sequence[SampleResult | None],
    slices: Mapping[str, Sequence[int]],
    *,
    resamples: int,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, DatasetScores]:
    """Score each slice, which is the places of its images, as a data set of its own; only its figure `MAIN` is whole.

    `progress` is called with the numbers of samples scored, and of all.
    """
    scores = {}
    for number, (name, places) in enumerate(slices.items()):

        def report(done: int, _: int, number: int = number) -> None:
            if progress is not None:
                progress(number * resamples + done, len(slices) * resamples)

        scores[name] = score(
            measure,
            replace(dataset, images=tuple(dataset.images[place] for place in places)),
            classes,
            [labels[place] for place in places],
            [answers[place] for place in places],
            resamples=resamples,
            only_main=True,
            progress=report,
        )
    return scores


def _score_pixels(
    classes: Classes, labels: Sequence[Regions], found: Sequence[Regions], samples: Samples
) -> DatasetScores:
    figures = []
    for quality in score_samples("semantic", labels, found, samples, false_classes=True, outlines=True):
        own = {
            number: {"iou": iou, "boundaryIou": quality.outlines[number], "dice": 2 * iou / (1 + iou)}
            for number, iou in quality.classes.items()
        }
        metrics = {
            "miou": quality.means["iou"],
            "boundaryIou": quality.means["boundaryIou"],
            "dice": _mean(each["dice"] for each in own.values()),
            "recall": quality.means["recall"],
        }
        figures.append((quality, metrics, own))
    return _scores(classes, figures, labels)


def _score_segments(
    classes: Classes, pairs: Sequence[LabelPair], found: Sequence[Regions], samples: Samples, things: frozenset[int]
) -> DatasetScores:
    labels = [segments for segments, _ in pairs]
    # Without scores there is no AP to compute for each sample.
    counted = [replace(without_ignored(answer, *pair), scores=None) for answer, pair in zip(found, pairs, strict=True)]
    figures = []
    for quality in score_samples(
        "objects", labels, counted, samples, false_classes=True, most=None, above_match=True, outlines=True
    ):
        metrics = {"pq": quality.means["iou"], "boundaryPq": quality.means["boundaryIou"]}
        for name, wanted in (("pqThings", True), ("pqStuff", False)):
            metrics[name] = _mean(pq for number, pq in quality.classes.items() if (number in things) is wanted)
        figures.append((quality, metrics, {number: {"pq": pq} for number, pq in quality.classes.items()}))
    return _scores(classes, figures, labels)


def _score_objects(
    dataset: Dataset,
    classes: Classes,
    pairs: Sequence[LabelPair],
    found: Sequence[Regions],
    sure: Sequence[Regions],
    samples: Samples,
    *,
    masks: bool,
    only_main: bool,
) -> DatasetScores:
    labels = [objects for objects, _ in pairs]
    counted = [without_ignored(answer, *pair) for answer, pair in zip(sure, pairs, strict=True)]
    every = [range(len(labels))]
    (by_image,) = score_samples(
        "objects", labels, counted, every, false_classes=True, most=None, outlines=not only_main
    )
    annotations = []
    for index, image in enumerate(dataset.images):
        for each in image.annotations:
            if int(each["category_id"]) not in classes:
                continue
            x, y, width, height = box_of(each, image)
            annotation: dict[str, Any] = {"image_id": index, "category_id": classes[int(each["category_id"])].id}
            annotation |= {"bbox": [x, y, width, height], "area": width * height}
            if masks:
                rle = {"size": list(image.size), "counts": counts_of(each, image)}
                annotation |= {"segmentation": rle, "area": int(area(rle))}
            if each.get("area") is not None:
                annotation["area"] = float(each["area"])
            annotations.append(annotation | {"iscrowd": int(bool(each.get("iscrowd")))})
    judge = COCOeval(
        _coco(dataset, classes, annotations), _detections(dataset, classes, found), "segm" if masks else "bbox"
    )
    table = _MAIN_FIGURES if only_main else _FIGURES
    judge.params.maxDets += detections_beyond_coco(labels, found)
    if only_main:
        # One of the twelve precisions: of objects of all sizes.
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], [_AREAS[0]]
        judge.params.maxDets = judge.params.maxDets[-1:]
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        numbers = judge.params.catIds
        evaluated = np.array(judge.evalImgs, object).reshape(-1, len(dataset.images))
        figures = []
        for sample in samples:
            # The images' own evaluations stay as they are: only which of them are summed up differs.
            judge.evalImgs = evaluated[:, list(sample)].ravel().tolist()
            judge.accumulate()
            figures.append(_figures(judge.eval, table))
    names = {one.id: one.name for one in classes.values()}
    by_class = {
        names[number]: _estimates([each[f"class {row}"] for each in figures]) for row, number in enumerate(numbers)
    }
    sizes = {size: _estimates([each[size] for each in figures]) for size in SIZES if size in figures[0]}
    scores = DatasetScores(
        _estimates([each["all"] for each in figures]),
        {name: own for name, own in by_class.items() if own},
        by_image.images,
        tuple(labels),
        {size: own for size, own in sizes.items() if own},
    )
    if only_main:
        return scores
    # The first rows of each class are of objects of all sizes.
    outlines = [("boundaryPq", by_image.means.get("boundaryIou", math.nan), ())]
    scores = replace(scores, metrics={**scores.metrics, **estimates(outlines)})
    return _with_calibration(scores, object_calibration(evaluated[:: len(_AREAS)].ravel()))


def _with_calibration(scores: DatasetScores, error: float) -> DatasetScores:
    """Return scores with an ECE unless it is NaN.

    It has no interval: samples of the images have larger errors than the images have, of calibrated scores most of all.
    """
    return replace(scores, metrics={**scores.metrics, **estimates([("ece", error, ())])})


CocoFigures: TypeAlias = Mapping[str, tuple[str, int | slice, int]]
"""By a figure's name: the array of pycocotools that it is the mean of, thresholds of IoU, number of detections."""
_FIGURES: Final[CocoFigures] = {
    "ap": ("precision", slice(None), -1),
    "ap50": ("precision", 0, -1),
    "ap75": ("precision", 5, -1),
    "ar1": ("recall", slice(None), 0),
    "ar10": ("recall", slice(None), 1),
    "ar100": ("recall", slice(None), 2),
}
_MAIN_FIGURES: Final[CocoFigures] = {"ap": ("precision", slice(None), 0)}


def _figures(evaluated: Mapping[str, NDArray[Any]], table: CocoFigures) -> dict[str, dict[str, float]]:
    """Return the figures of all objects, of each size that was evaluated, and of each class, by its row."""
    class_count, size_count, _ = evaluated["recall"].shape[1:]
    groups: dict[str, tuple[Any, int]] = {size: (slice(None), area) for area, size in enumerate(_AREAS[:size_count])}
    groups |= {f"class {row}": (row, 0) for row in range(class_count)}
    return {
        group: {
            name: _known_mean(evaluated[key][thresholds][..., row, area, detections])
            for name, (key, thresholds, detections) in table.items()
        }
        for group, (row, area) in groups.items()
    }


def _known_mean(values: NDArray[Any]) -> float:
    """Return the mean without -1, which pycocotools has where nothing is to be found."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _scores(
    classes: Classes,
    figures: Sequence[tuple[Quality, Mapping[str, float], Mapping[int, Mapping[str, float]]]],
    labels: Sequence[Regions],
) -> DatasetScores:
    """Return scores from quality, metrics and metrics of classes, of all images first and then of each sample."""
    by_class = {one.name: _estimates([own.get(one.id, {}) for _, _, own in figures]) for one in classes.values()}
    metrics = _estimates([metrics for _, metrics, _ in figures])
    return DatasetScores(
        metrics, {name: own for name, own in by_class.items() if own}, figures[0][0].images, tuple(labels)
    )


def _detections(dataset: Dataset, classes: Classes, found: Sequence[Regions]) -> COCO:
    annotations = []
    for index, regions in enumerate(found):
        assert regions.boxes is not None
        assert regions.scores is not None
        for place, number in enumerate(regions.classes):
            x1, y1, x2, y2 = regions.boxes[place].tolist()
            annotation: dict[str, Any] = {
                "image_id": index,
                "category_id": number,
                "score": float(regions.scores[place]),
            }
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            if regions.masks is not None:
                rle = {"size": list(regions.size), "counts": regions.masks[place]}
                annotation |= {"segmentation": rle, "area": int(area(rle))}
            annotations.append(annotation)
    return _coco(dataset, classes, annotations)


def _coco(dataset: Dataset, classes: Classes, annotations: Iterable[Mapping[str, Any]]) -> COCO:
    made = COCO()
    made.dataset = {
        "images": [
            {"id": index, "height": image.size[0], "width": image.size[1]} for index, image in enumerate(dataset.images)
        ],
        "categories": [{"id": one.id, "name": one.name} for one in classes.values()],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made


def _answers(
    dataset: Dataset, classes: Classes, answers: Sequence[SampleResult | None], *, masks: bool
) -> list[Regions]:
    wanted = frozenset(one.id for one in classes.values())
    return [
        answer_regions(answer, image, wanted, masks=masks)
        for image, answer in zip(dataset.images, answers, strict=True)
    ]


def _estimates(figures: Sequence[Mapping[str, float]]) -> Estimates:
    """Return the figures of all images, which are the first, with the intervals that samples give them."""
    whole, *resampled = figures
    return estimates((name, value, [each.get(name, math.nan) for each in resampled]) for name, value in whole.items())


def _mean(values: Iterable[float]) -> float:
    known = [each for each in values if not math.isnan(each)]
    return float(np.mean(known)) if known else math.nan
