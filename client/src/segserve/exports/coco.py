"""COCO's JSON of the annotations of one or more images, and its panoptic format: a table, and a PNG of segment ids."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.results.annotation import AnnotatedResult, Annotation
from segserve.results.masks import runs_of
from segserve.results.values import SegmentClass, class_colour


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


def panoptic_data_set(
    result: AnnotatedResult, ids: NDArray[Any], is_thing: Mapping[int, bool], *, image_id: int, file_name: str | None
) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the PNG; see `PanopticResult.to_coco_panoptic`.

    `ids` is the map of segment ids (H, W); `is_thing` is by segment id. The format cannot hold segments without pixels,
    nor pixels of segments that the answer does not list: the former are left out, the latter become void.
    Categories are the classes of the segments: only for them is it known whether they are things.
    """
    from PIL import Image

    pixels = np.bincount(ids.ravel())
    segments = [one for one in result.annotations() if 0 < one.number < len(pixels) and pixels[one.number]]
    listed = np.where(np.isin(ids, [one.number for one in segments]), ids, 0)
    class_is_thing = {one.class_id: is_thing[one.number] for one in segments}
    name = str(image_id) if file_name is None else PurePath(file_name).stem
    masks = {one.number: one.mask for one in segments if one.mask is not None}
    boxes = dict(zip(masks, runs_of(list(masks.values())).boxes().tolist(), strict=True))
    table = []
    for one in segments:
        x1, y1, x2, y2 = boxes.get(one.number, (0, 0, 0, 0))
        row = {"id": one.number, "category_id": one.class_id, "area": int(pixels[one.number]), "iscrowd": 0}
        table.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": one.score})
    document = {
        "images": [image_entry(image_id, result.size, file_name)],
        "annotations": [{"image_id": image_id, "file_name": f"{name}.png", "segments_info": table}],
        "categories": [
            {"id": one.id, "name": one.name, "isthing": int(class_is_thing[one.id]), "color": list(class_colour(one))}
            for one in result.classes
            if one.id in class_is_thing
        ],
    }
    wide = listed.astype(np.uint32)
    channels = np.stack([wide & 255, wide >> 8 & 255, wide >> 16 & 255], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(channels).save(buffer, "PNG")
    return document, buffer.getvalue()
