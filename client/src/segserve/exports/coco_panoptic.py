"""COCO's panoptic format: a JSON table of segments, and a PNG whose colours are segment ids."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve.exports.coco import image_entry
from segserve.rendering.palette import class_colour
from segserve.results.annotation import AnnotatedResult
from segserve.results.masks import runs_of


def data_set(
    result: AnnotatedResult, ids: NDArray[Any], is_thing: Mapping[int, bool], *, image_id: int, file_name: str | None
) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the PNG; see `PanopticResult.to_coco_panoptic`.

    `ids` is the map of segment ids (H, W); `is_thing` is by segment id. The format cannot hold segments without pixels,
    nor pixels of segments that the answer does not list: the former are left out, the latter become void.
    Categories are those of the segments: only for them is it known whether they are things.
    """
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
    return document, _png(listed)


def _png(ids: NDArray[Any]) -> bytes:
    from PIL import Image

    wide = ids.astype(np.uint32)
    channels = np.stack([wide & 255, wide >> 8 & 255, wide >> 16 & 255], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(channels).save(buffer, "PNG")
    return buffer.getvalue()
