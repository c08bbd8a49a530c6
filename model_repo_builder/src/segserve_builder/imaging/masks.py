"""Masks of instances and segments: changes within their windows, outlines as COCO polygons, tables of segments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segserve_builder.spec.names import canonical_json
from segserve_builder.values import Instances, Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.kernels.rle import MaskWindow


def map_masks(
    instances: Instances,
    change: Callable[[NDArray[Any]], NDArray[Any]],
    margin: int = 0,
    classes: Collection[int] | None = None,
) -> Instances:
    """Return the instances with changed masks, without those whose mask became empty.

    `change` takes and returns uint8 0/1, shaped (h, w): the mask's bounding box with `margin` pixels around it, within
    the image. If `classes` is set, instances of other classes stay unchanged.
    """
    from segserve_builder.kernels.rle import MaskWindow, encode
    from segserve_builder.kernels.rle_reader import decode

    size = (instances.height, instances.width)
    masks, kept = [], []
    for index, counts in enumerate(instances.masks):
        if classes is not None and int(instances.classes[index]) not in classes:
            masks.append(counts)
            kept.append(index)
            continue
        window = decode(counts, *size, margin)
        bitmap = change(window.bitmap) if window.bitmap.size else window.bitmap
        if bitmap.any():
            masks.append(encode(MaskWindow(bitmap, window.top, window.left), *size))
            kept.append(index)
    return replace(instances.take(kept), masks=tuple(masks))


def polygons_json(window: MaskWindow, tolerance: float | None = None) -> bytes:
    """Return the outlines of a mask as JSON [[x, y, x, y, ...], ...], one polygon per part, without holes.

    Corners are corners of pixels, in pixels of the mask: pycocotools restores the mask with its holes filled. With a
    `tolerance` in pixels corners are dropped that are at most that far from the polygon.
    """
    from segserve_builder.kernels.outlines import ring_json, simplified

    rings = outlines(window)
    if tolerance is not None:
        rings = [simplified(ring, tolerance) for ring in rings]
    return b"[" + b",".join(map(ring_json, rings)) + b"]"


def outlines(window: MaskWindow) -> list[NDArray[Any]]:
    """Return the outline of every 8-connected part, int32 (P, 2) as x y of pixels' corners, P >= 4."""
    if not window.bitmap.size:
        return []
    import cv2
    import numpy as np

    from segserve_builder.kernels.outlines import corners

    bitmap = np.ascontiguousarray(window.bitmap)
    borders, _ = cv2.findContours(bitmap, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [corners(border[:, 0], window.left, window.top) for border in borders]


def segments_json(ids: NDArray[Any], segments: Sequence[Segment]) -> bytes:
    """Return the segments as a JSON list of objects with id, class, isThing, score, area and box.

    `ids` is uint8 or uint16 shaped (H, W). `area` is in pixels; `box` is x1, y1, x2, y2 in pixels, after the last one.
    """
    import cv2
    import numpy as np

    areas = np.bincount(ids.ravel(), minlength=max((segment.id for segment in segments), default=0) + 1)
    rows = []
    for segment in segments:
        x, y, width, height = cv2.boundingRect((ids == segment.id).view(np.uint8))
        rows.append(
            {
                "id": segment.id,
                "class": segment.class_id,
                "isThing": segment.is_thing,
                "score": round(segment.score, 6),
                "area": int(areas[segment.id]),
                "box": [x, y, x + width, y + height],
            }
        )
    return canonical_json(rows).encode()
