"""Masks as COCO polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segserve_builder.names import canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.kernels.rle import Window


def polygons_json(window: Window, tolerance: float | None = None) -> bytes:
    """Return the outlines of a mask as JSON [[x, y, x, y, ...], ...], one polygon a part, without holes.

    Corners are those of pixels, in pixels of the mask: pycocotools gives the mask back, with its holes filled.
    """
    rings = [ring.ravel().tolist() for ring in outlines(window)] if window.bitmap.size else []
    return canonical_json(rings).encode()


def outlines(window: Window) -> list[NDArray[Any]]:
    """Return the outline of every 8-connected part, int32 (P, 2) as x y of pixels' corners, P >= 4."""
    import cv2
    import numpy as np

    # OpenCV's contours join the centres of border pixels. Those of the doubled mask lie half a pixel of it, that
    # is a quarter of one, inside the border, so that rounding up finds the corners.
    doubled = cv2.resize(window.bitmap, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    offset = np.array([window.left, window.top], np.int32)
    return [_corners((contour[:, 0] + 1) // 2) + offset for contour in contours]


def _corners(ring: NDArray[Any]) -> NDArray[Any]:
    """Return a closed ring without the points at which it does not turn."""
    import numpy as np

    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    arriving, leaving = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns: NDArray[Any] = ring[arriving[:, 0] * leaving[:, 1] != arriving[:, 1] * leaving[:, 0]]
    return turns
