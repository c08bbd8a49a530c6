"""The labels of Pascal VOC that a task needs: its maps of classes, its masks of objects, or its boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from segserve.errors import DatasetError
from segserve_platform.evaluation.datasets import VOC_BOXES, VOC_MAPS, VOC_OBJECTS, Dataset, LabelledImage, few
from segserve_platform.evaluation.regions import NOT_LABELLED, masks_by_value, read_map
from segserve_platform.evaluation.scores import Task

_NOT_OBJECTS: Final = frozenset({0, NOT_LABELLED})
"""The values of background and of the ignored border around objects."""


def voc_labels(dataset: Dataset, task: Task) -> Dataset:
    """Return a VOC data set with its maps, with the masks of its objects, or with their boxes.

    Where no image has masks of objects, they have boxes, and the other way round. Raises `DatasetError` for images
    without such labels.
    """
    if task == "semantic":
        _check(dataset, [each for each in dataset.images if each.label_map is None], VOC_MAPS, "PNG")
        return replace(dataset, images=tuple(replace(each, annotations=()) for each in dataset.images))
    classes = {number: name for number, name in (dataset.classes or {}).items() if number != 0}
    unboxed = [each for each in dataset.images if not _boxes(each).is_file()]
    by_boxes = task in ("detection", "keypoints") or all(each.object_map is None for each in dataset.images)
    if not by_boxes or len(unboxed) == len(dataset.images):
        unmapped = [each for each in dataset.images if None in (each.label_map, each.object_map)]
        _check(dataset, unmapped, VOC_OBJECTS, "PNG")
        images = tuple(replace(each, annotations=_objects(each, classes)) for each in dataset.images)
    else:
        _check(dataset, unboxed, VOC_BOXES, "XML")
        images = dataset.images
    return replace(dataset, labels="objects", images=images, classes=classes)


def _boxes(image: LabelledImage) -> Path:
    return image.path.parent.parent / VOC_BOXES / f"{image.path.stem}.xml"


def _check(dataset: Dataset, without: list[LabelledImage], folder: str, form: str) -> None:
    if without:
        raise DatasetError(
            f"{len(without)} of {len(dataset.images)} images have no labels: {few(each.name for each in without)}; "
            f"expected {form} files of the same name in {folder}"
        )


def _objects(image: LabelledImage, classes: dict[int, str]) -> tuple[dict[str, Any], ...]:
    """Return an annotation with a mask for each object, whose class is that of most of its pixels."""
    assert image.label_map is not None
    assert image.object_map is not None
    values = read_map(image, image.label_map)
    annotations = []
    for number, mask in masks_by_value(read_map(image, image.object_map)).items():
        if number in _NOT_OBJECTS:
            continue
        shown, counts = np.unique(values[mask.bitmap], return_counts=True)
        class_id = int(shown[counts.argmax()])
        if class_id not in classes:
            raise DatasetError(
                f"{image.object_map} has the object {number} where {image.label_map} has the value {class_id}; classes "
                f"are {few((f'{value} {name}' for value, name in classes.items()), 20)}"
            )
        rle = {"size": list(image.size), "counts": mask.rle["counts"].decode("ascii")}
        annotations.append({"category_id": class_id, "segmentation": rle})
    return tuple(annotations)
