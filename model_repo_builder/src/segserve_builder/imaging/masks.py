"""Masks of instances and segments: changes within their windows, outlines as COCO polygons, tables, PNG files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve_builder.spec.names import canonical_json
from segserve_builder.values import Instances, Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.kernels.rle import MaskWindow

Rgb: TypeAlias = tuple[int, int, int]

COMPRESSION: Final = 1
"""zlib's fastest level: label maps are regular, so slower levels gain little."""


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


def default_colour(label: int) -> Rgb:
    """Return the default colour of a class, PASCAL VOC's, in which class 0 is black."""
    red = green = blue = 0
    for bit in range(8):
        red |= (label >> (3 * bit) & 1) << (7 - bit)
        green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
        blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
    return red, green, blue


def palette(colours: Sequence[str | None]) -> tuple[Rgb, ...]:
    """Return 256 colours: the classes' colours, as #rrggbb, and default ones for None and for further labels."""
    own = {label: colour for label, colour in enumerate(colours) if colour is not None}
    return tuple(_rgb(own[label]) if label in own else default_colour(label) for label in range(256))


@cache
def _palette_bytes(colours: tuple[str | None, ...]) -> bytes:
    return bytes(part for colour in palette(colours) for part in colour)


def _rgb(colour: str) -> Rgb:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def label_png(labels: NDArray[Any], colours: Sequence[str | None]) -> bytes:
    """Return a label map (H, W) as PNG: uint8 labels with the classes' palette, uint16 ones as 16-bit grey."""
    from PIL import Image

    image = Image.fromarray(labels)
    if labels.dtype.itemsize == 1:  # with fewer than 256 colours Pillow would write fewer than 8 bits
        image.putpalette(_palette_bytes(tuple(colours)))
    return _file(image)


def mask_png(bitmap: NDArray[Any]) -> bytes:
    """Return a mask, uint8 0/1 shaped (H, W), as 8-bit grey PNG of 0 and 255."""
    from PIL import Image

    return _file(Image.fromarray(bitmap * 255))


def _file(image: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()
