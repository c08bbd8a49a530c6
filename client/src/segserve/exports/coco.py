"""COCO's JSON: a data set of the annotations of one or more images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segserve.results.annotation import Annotation
from segserve.results.masks import runs_of
from segserve.results.values import SegmentClass


@dataclass(frozen=True, slots=True)
class Entry:
    """One image, `size` as (height, width), and its annotations."""

    size: tuple[int, int]
    found: tuple[Annotation, ...]
    file_name: str | None = None
    image_id: int = 1


def data_set(entries: Sequence[Entry], classes: Iterable[SegmentClass]) -> dict[str, Any]:
    """Return images, categories and annotations, numbered from 1, with RLE counts as text."""
    for entry in entries:
        runs_of([one.mask for one in entry.found if one.mask is not None])  # all at once, for their areas and RLE
    annotations = [(entry.image_id, one) for entry in entries for one in entry.found]
    return {
        "images": [image_entry(entry.image_id, entry.size, entry.file_name) for entry in entries],
        "categories": [{"id": segment_class.id, "name": segment_class.name} for segment_class in classes],
        "annotations": [_annotation(number, image_id, one) for number, (image_id, one) in enumerate(annotations, 1)],
    }


def merge(data_sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the data sets as one, with annotations renumbered; their image ids must be distinct."""
    categories = {category["id"]: category for part in data_sets for category in part["categories"]}
    annotations = [annotation for part in data_sets for annotation in part["annotations"]]
    return {
        "images": [image for part in data_sets for image in part["images"]],
        "categories": [categories[key] for key in sorted(categories)],
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)],
    }


def image_entry(image_id: int, size: tuple[int, int], file_name: str | None) -> dict[str, Any]:
    """Return COCO's entry for an image; `size` is (height, width)."""
    height, width = size
    image = {"id": image_id, "width": width, "height": height}
    return image if file_name is None else image | {"file_name": file_name}


def _annotation(number: int, image_id: int, source: Annotation) -> dict[str, Any]:
    x1, y1, x2, y2 = source.box
    annotation: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": source.class_id}
    annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": source.area, "iscrowd": 0}
    if source.mask is not None:
        rle = source.mask.rle
        annotation["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    if source.points is not None:
        # COCO's third number says whether a point is labelled and visible, which all points of an answer are.
        points = [number for x, y, _ in source.points.tolist() for number in (x, y, 2)]
        annotation |= {"keypoints": points, "num_keypoints": len(source.points)}
    return annotation if source.score is None else annotation | {"score": source.score}
