"""COCO's panoptic format: a JSON table of segments beside a PNG whose colours are their ids."""

from __future__ import annotations

import io
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from segserve.exports.coco import image_entry
from segserve.rendering.palette import class_colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve.results.panoptic import PanopticResult


def data_set(result: PanopticResult, *, image_id: int, file_name: str | None) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the PNG; see `PanopticResult.to_coco_panoptic`.

    Segments without pixels are left out, and pixels of segments that the answer does not list are void, as the
    format has no place for either. Categories are those that were found: only of them it is known whether
    they are things.
    """
    pixels = np.bincount(result.ids.ravel())
    segments = [one for one in result if 0 < one.id < len(pixels) and pixels[one.id]]
    ids = np.where(np.isin(result.ids, [one.id for one in segments]), result.ids, 0)
    is_thing = {one.class_id: one.is_thing for one in segments}
    name = str(image_id) if file_name is None else PurePath(file_name).stem
    boxes = {found.number: found.mask.patch().box for found in result.annotations() if found.mask is not None}
    table = []
    for one in segments:
        x1, y1, x2, y2 = boxes[one.id]
        row = {"id": one.id, "category_id": one.class_id, "area": int(pixels[one.id]), "iscrowd": 0}
        table.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": one.score})
    document = {
        "images": [image_entry(image_id, result.size, file_name)],
        "annotations": [{"image_id": image_id, "file_name": f"{name}.png", "segments_info": table}],
        "categories": [
            {"id": known.id, "name": known.name, "isthing": int(is_thing[known.id]), "color": list(class_colour(known))}
            for known in result.classes
            if known.id in is_thing
        ],
    }
    return document, _png(ids)


def _png(ids: NDArray[Any]) -> bytes:
    from PIL import Image

    wide = ids.astype(np.uint32)
    channels = np.stack([wide & 255, wide >> 8 & 255, wide >> 16 & 255], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(channels).save(buffer, "PNG")
    return buffer.getvalue()
