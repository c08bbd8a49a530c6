"""Golden images with their labels, and answers to them, as regions of the same form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco

from segserve_builder.errors import GoldenError
from segserve_builder.golden import judging as golden
from segserve_builder.scoring.quality import Regions
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.public_outputs import SCORED, Task, has_masks

_GREY: Final = frozenset({"L", "P", "I", "I;16", "I;16B"})


@dataclass(frozen=True, slots=True)
class GoldenImage:
    """One image: its file, its labels or the expected answer in their place, and whether people labelled it."""

    path: Path
    labels: Regions
    labelled: bool
    case: golden.Case


@dataclass(frozen=True, slots=True)
class GoldenImages:
    """A golden set in an order independent of the content, its requests' parameters, and the limit of objects."""

    task: Task
    images: tuple[GoldenImage, ...]
    parameters: Mapping[str, Any]
    limit: int | None = None


def read_golden_images(folder: Path, sha256: str, pipeline: Pipeline) -> GoldenImages:
    """Read the golden set in `folder`, whose digest is `sha256`, for a revision with this pipeline.

    Raises `GoldenError` if the set or a label map cannot be read, or does not suit the task.
    """
    task = check_postprocess(pipeline)
    known = frozenset(item.id for item in pipeline.classes)
    images = [_image(folder, case, task, known) for case in golden.load(folder).cases]
    # Evidence is gathered image by image: a sorted set, such as easy images first, would mislead it.
    images.sort(key=lambda image: hashlib.sha256(f"{sha256}/{image.case.image}".encode()).digest())
    as_rle = has_masks(task) and "encoding" in pipeline.output.overrides
    limit = pipeline.max_detections if task in SCORED else None
    return GoldenImages(task, tuple(images), {"encoding": "rle"} if as_rle else {}, limit)


def _image(folder: Path, case: golden.Case, task: Task, known: frozenset[int]) -> GoldenImage:
    labelled = case.labels is not None or case.label_map is not None
    if case.label_map is not None:
        if task != "semantic":
            raise GoldenError(f"{case.image}: a labelMap is only for semantic models; use labels for {task} models")
        labels = labels_of_map(folder / case.label_map, known)
    else:
        labels = labels_of_marks(case.labels or case.expected, task)
    if task != "detection" and task != "keypoints" and labels.masks is None:
        raise GoldenError(f"{case.image}: labels of {task} models need MASKS")
    return GoldenImage(folder / case.image, labels, labelled, case)


def labels_of_marks(marks: golden.GoldenLabels | golden.Expected, task: Task) -> Regions:
    """Return the marks of an image as regions, with boxes around the masks if the task needs boxes."""
    masks = None if marks.masks is None else tuple(counts.encode("ascii") for counts in marks.masks)
    boxes = None if marks.boxes is None else np.array(marks.boxes, np.float64).reshape(-1, 4)
    points = None if marks.keypoints is None else np.array(marks.keypoints, np.float64)
    regions = Regions(marks.size, marks.classes, masks, boxes, None, points)
    if task in ("detection", "keypoints") and boxes is None and masks is not None:
        return replace(regions, boxes=_boxes_around(marks.size, masks))
    return regions


def _boxes_around(size: tuple[int, int], masks: tuple[bytes, ...]) -> NDArray[np.float64]:
    boxes = np.zeros((len(masks), 4))
    if masks:
        x, y, width, height = coco.toBbox([{"size": list(size), "counts": counts} for counts in masks]).T
        boxes[:] = np.stack([x, y, x + width, y + height], axis=1)
    return boxes


def labels_of_map(path: Path, known: frozenset[int]) -> Regions:
    """Read a label map; pixels whose value is not a class are unlabelled."""
    try:
        with Image.open(path) as image:
            if image.mode not in _GREY:
                raise GoldenError(f"{path.name} has the mode {image.mode}; a label map has one channel or a palette")
            pixels = np.asfortranarray(image)  # as masks are encoded: without a copy of each
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise GoldenError(f"{path.name} cannot be read: {error}") from error
    present = [number for number in sorted(known) if (pixels == number).any()]
    if not present:
        raise GoldenError(f"{path.name} shows none of the classes {', '.join(map(str, sorted(known)))}")
    masks, counted = list[bytes](), np.zeros(pixels.shape, bool, order="F")
    for number in present:
        mask = pixels == number
        counted |= mask
        masks.append(_encoded(mask))
    size = (pixels.shape[0], pixels.shape[1])
    return Regions(size, tuple(present), tuple(masks), counted=None if counted.all() else _encoded(counted))


def _encoded(mask: NDArray[np.bool_]) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts


def regions_of(image: str, size: tuple[int, int], answer: golden.Answer, task: Task) -> Regions:
    """Return the answer to an image as regions; raises `GoldenError` if it cannot be read, or has another size."""
    columns = golden.with_columns(image, answer)
    missing = [output for output in _NEEDED[task] if output not in columns]
    if missing:
        raise GoldenError(f"{image}: the answer lacks {', '.join(missing)}; it has {', '.join(sorted(answer))}")
    answered = tuple(int(number) for number in columns["SIZE"])
    if answered != size:
        raise GoldenError(f"{image}: SIZE is {answered}; its labels have {size}")
    scored = "SCORES" in columns and task != "panoptic"
    return Regions(
        size,
        tuple(int(number) for number in columns["CLASSES"]),
        golden.run_length_masks(image, columns, size) if "MASKS" in columns else None,
        columns["BOXES"].astype(np.float64).reshape(-1, 4) if "BOXES" in columns else None,
        columns["SCORES"].astype(np.float64) if scored else None,
        columns["KEYPOINTS"].astype(np.float64) if "KEYPOINTS" in columns else None,
    )


def empty_regions(image: GoldenImage, task: Task) -> Regions:
    """Return an answer without any region."""
    scores = None if task in ("semantic", "panoptic") else np.zeros(0)
    return Regions(image.labels.size, (), (), np.zeros((0, 4)), scores)


_NEEDED: Final[Mapping[Task, tuple[str, ...]]] = {
    "semantic": ("SIZE", "CLASSES", "MASKS"),
    "instance": ("SIZE", "CLASSES", "SCORES", "MASKS"),
    "panoptic": ("SIZE", "CLASSES", "MASKS"),
    "detection": ("SIZE", "CLASSES", "SCORES", "BOXES"),
    "keypoints": ("SIZE", "CLASSES", "SCORES", "BOXES", "KEYPOINTS"),
}
"""The outputs that the score needs."""
