"""Boxes between the network's input and the original image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segserve_builder.values import Float32, ResizeTransform


def to_image_coordinates(boxes: Float32, placement: ResizeTransform) -> Float32:
    """Return x1 y1 x2 y2 in pixels of the original image, not clipped, float32 (N, 4), of those in the input's."""
    import numpy as np

    corner = np.array([placement.left, placement.top] * 2, np.float32)
    moved: Float32 = (boxes - corner) * np.array(placement.scale * 2, np.float32)
    return moved
