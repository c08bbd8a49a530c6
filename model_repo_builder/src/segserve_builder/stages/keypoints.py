"""The stage that turns candidates with keypoints into points of the image."""

from __future__ import annotations

from typing import ClassVar, Final, cast

from segserve_builder import values
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, Float32, HeatmapHeads, PointHeads, ResizeTransform, ValueType

ROUNDINGS: Final = 8
"""Number of float32 roundings of a coordinate between the network's input and the image, both ways."""


class Keypoints(Stage):
    """Take each heat map's peak as a point, in pixels of the original image, or the points that a network gives.

    Heat maps are upsampled by cubic interpolation over their box, to the size that it has in the network's input; a
    point's score is the logit there. Boxes are clipped to the image, points of heat maps are not. A given point's score
    is its visibility, and it is clipped, as Ultralytics does.
    """

    version: ClassVar[int] = 2
    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.HEATMAPS, ValueType.POINTS})
    gives: ClassVar[ValueType | None] = ValueType.KEYPOINTS

    def __call__(self, value: Candidates, request: RequestOptions) -> values.KeypointDetections:
        """Return a detection with its points for each candidate, in the same order."""
        import numpy as np

        p, heads = value.transform, value.heads
        if isinstance(heads, PointHeads):
            points, limit = heads.points.copy(), np.array([p.width, p.height], np.float32)
        else:
            from segserve_builder.kernels.keypoints import keypoints

            points = keypoints(cast("HeatmapHeads", heads).heatmaps, _in_network_pixels(value.boxes, p))
            limit = None
        scale = np.array(p.scale, np.float32)
        points[:, :, :2] = (points[:, :, :2] - np.array([p.left, p.top], np.float32)) * scale
        if limit is not None:
            points[:, :, :2] = np.clip(points[:, :, :2], 0, limit)
        boxes = np.clip(value.boxes, 0, np.array([p.width, p.height] * 2, np.float32))
        return values.KeypointDetections(boxes, value.scores, value.classes, points, p.height, p.width)


def _in_network_pixels(boxes: Float32, transform: ResizeTransform) -> Float32:
    """Return boxes, float32 (N, 4), in pixels of the network's input, with whole numbers restored from rounding.

    A heat map has its box's size rounded up: it must not grow by a pixel because 800 has become 800.00006.
    """
    import numpy as np

    p = transform
    scale, start = np.array([p.inner_width / p.width, p.inner_height / p.height] * 2), np.array([p.left, p.top] * 2)
    scaled = boxes * scale
    exact = scaled + start
    whole = np.rint(exact)
    # Errors scale with the summands that were rounded; beside a wide border the sum may be far smaller.
    rounded = np.maximum(np.maximum(np.abs(scaled), np.abs(start)), 1)
    near = np.abs(exact - whole) <= ROUNDINGS * np.finfo(np.float32).eps * rounded
    given: Float32 = np.where(near, whole, exact).astype(np.float32)
    return given
