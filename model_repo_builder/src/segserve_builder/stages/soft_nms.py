"""The stage that lowers the scores of overlapping boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import CANDIDATES, Candidates, ValueType


class SoftNms(Stage):
    """Lower the score of a box for every better one that it overlaps (soft non-maximum suppression).

    It keeps the same boxes in the same order as `soft_nms` of ensemble-boxes. Unlike there, boxes keep the lowered
    score by which they were chosen; boxes are in pixels; boxes without area or with swapped corners overlap nothing and
    are kept; and among equal scores the first is taken first.
    """

    takes: ClassVar[frozenset[ValueType]] = CANDIDATES - {ValueType.ROTATED}

    method: Literal["gaussian", "linear"] = Field(
        "gaussian", description="Factor by which an IoU lowers a score: exp(-IoU² / sigma), or 1 - IoU."
    )
    iou_threshold: float = Field(0.5, ge=0, le=1, description="linear: IoU above which a score is lowered.")
    sigma: float = Field(
        0.5, gt=0, le=100, description="gaussian: width of the decay; smaller values lower scores more."
    )
    score_threshold: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Lowered score above which boxes are kept; a request's score_threshold overrides it.",
    )
    class_aware: bool = Field(True, description="Whether only boxes of the same class lower each other's scores.")
    max_detections: int = Field(
        300, ge=1, le=10_000, description="Largest number of boxes kept; a request's max_detections overrides it."
    )

    def __call__(self, value: Candidates, request: RequestOptions) -> Candidates:
        """Return the kept candidates with their lowered scores, best first."""
        import numpy as np

        from segserve_builder.kernels.soft_nms import soft_nms

        limit = request.most(self.max_detections)
        least = request.least_score(self.score_threshold)
        classes = value.classes if self.class_aware else np.zeros_like(value.classes)
        keep, scores = soft_nms(
            value.boxes, value.scores, classes, self.method, self.iou_threshold, self.sigma, least, limit
        )
        return replace(value.take(keep), scores=scores)
