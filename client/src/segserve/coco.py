"""COCO's JSON: one data set out of the objects of one or more images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from segserve.masks import Rle
    from segserve.types import SegmentClass


@dataclass(frozen=True, slots=True)
class Object:
    """One mask; `box` is x1, y1, x2, y2, or None to take the mask's own."""

    class_id: int
    rle: Rle
    score: float | None
    box: tuple[float, float, float, float] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One image, `size` as (height, width), and its objects."""

    size: tuple[int, int]
    objects: tuple[Object, ...]
    file_name: str | None = None
    image_id: int = 1


def data_set(entries: Sequence[Entry], classes: Iterable[SegmentClass]) -> dict[str, Any]:
    """Return the images, categories and annotations, numbered from 1, with RLE counts as text."""
    objects = [(entry.image_id, found) for entry in entries for found in entry.objects]
    return {
        "images": [_image(entry) for entry in entries],
        "categories": [{"id": known.id, "name": known.name} for known in classes],
        "annotations": [_annotation(number, image_id, found) for number, (image_id, found) in enumerate(objects, 1)],
    }


def merge(data_sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the data sets as one, annotations numbered anew; their images must be numbered apart."""
    categories = {category["id"]: category for part in data_sets for category in part["categories"]}
    annotations = [annotation for part in data_sets for annotation in part["annotations"]]
    return {
        "images": [image for part in data_sets for image in part["images"]],
        "categories": [categories[key] for key in sorted(categories)],
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)],
    }


def _image(entry: Entry) -> dict[str, Any]:
    height, width = entry.size
    image = {"id": entry.image_id, "width": width, "height": height}
    return image if entry.file_name is None else image | {"file_name": entry.file_name}


def _annotation(number: int, image_id: int, found: Object) -> dict[str, Any]:
    from pycocotools import mask

    if found.box is None:
        box = [float(side) for side in mask.toBbox(found.rle)]
    else:
        x1, y1, x2, y2 = found.box
        box = [x1, y1, x2 - x1, y2 - y1]
    annotation = {
        "id": number,
        "image_id": image_id,
        "category_id": found.class_id,
        "bbox": box,
        "area": int(mask.area(found.rle)),
        "segmentation": {"size": list(found.rle["size"]), "counts": found.rle["counts"].decode("ascii")},
        "iscrowd": 0,
    }
    return annotation if found.score is None else annotation | {"score": found.score}
