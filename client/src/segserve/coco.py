"""COCO's JSON: one data set out of the objects of one or more images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from segserve.masks import Rle
    from segserve.types import SegmentClass


@dataclass(frozen=True, slots=True)
class Object:
    """One object: at least one of mask and box.

    `box` is x1, y1, x2, y2, or None to take the mask's own; `points` are (K, 3) as x, y, score.
    """

    class_id: int
    rle: Rle | None
    score: float | None
    box: tuple[float, float, float, float] | None
    points: NDArray[np.float32] | None = None


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
    annotation = {"id": number, "image_id": image_id, "category_id": found.class_id, **_shape(found), "iscrowd": 0}
    if found.points is not None:
        # COCO's third number says whether a point is labelled and visible; all that are answered are.
        points = [number for x, y, _ in found.points.tolist() for number in (x, y, 2)]
        annotation |= {"keypoints": points, "num_keypoints": len(found.points)}
    return annotation if found.score is None else annotation | {"score": found.score}


def _shape(found: Object) -> dict[str, Any]:
    from pycocotools import mask

    if found.box is not None:
        x1, y1, x2, y2 = found.box
        box = [x1, y1, x2 - x1, y2 - y1]
    else:
        box = [float(side) for side in mask.toBbox(found.rle)]
    if found.rle is None:
        return {"bbox": box, "area": box[2] * box[3]}
    counts = {"size": list(found.rle["size"]), "counts": found.rle["counts"].decode("ascii")}
    return {"bbox": box, "area": int(mask.area(found.rle)), "segmentation": counts}
