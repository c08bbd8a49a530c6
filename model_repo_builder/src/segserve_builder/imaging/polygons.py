"""Masks as COCO polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.kernels.rle import MaskWindow


def polygons_json(window: MaskWindow, tolerance: float | None = None) -> bytes:
    """Return the outlines of a mask as JSON [[x, y, x, y, ...], ...], one polygon a part, without holes.

    Corners are those of pixels, in pixels of the mask: pycocotools gives the mask back, with its holes filled. With a
    `tolerance` in pixels polygons have fewer corners, and the others are at most that far from them.
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
