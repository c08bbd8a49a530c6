"""The stage that suppresses overlapping boxes."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import CANDIDATES, Candidates, RotatedHeads, ValueType


class Nms(Stage):
    """Keep the best-scored box of those that overlap (greedy non-maximum suppression).

    Rotated boxes have a probabilistic IoU, and are removed by any better box, as in Ultralytics.
    """

    version: ClassVar[int] = 2
    takes: ClassVar[frozenset[ValueType]] = CANDIDATES

    iou_threshold: float = Field(
        0.7, ge=0, le=1, description="Boxes whose IoU with a better one exceeds it are removed."
    )
    class_aware: bool = Field(True, description="Whether only boxes of the same class suppress each other.")
    max_detections: int = Field(
        300, ge=1, le=10_000, description="Largest number of boxes kept; a request's max_detections overrides it."
    )

    def __call__(self, value: Candidates, request: RequestOptions) -> Candidates:
        """Return the kept candidates, best score first."""
        import numpy as np

        from segserve_builder.kernels.nms import nms

        limit = request.most(self.max_detections)
        classes = value.classes if self.class_aware else np.zeros_like(value.classes)
        if isinstance(value.heads, RotatedHeads):
            from segserve_builder.kernels.rotated import rotated_nms

            rectangles = value.heads.rectangles
            return value.take(rotated_nms(rectangles, value.scores, classes, self.iou_threshold, limit))
        return value.take(nms(value.boxes, value.scores, classes, self.iou_threshold, limit))
