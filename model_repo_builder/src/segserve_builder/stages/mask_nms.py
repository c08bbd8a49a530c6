"""The stage that suppresses overlapping masks."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Instances, ValueType


class MaskNms(Stage):
    """Lower the scores of masks that overlap better ones (Matrix NMS of SOLOv2), or remove them (greedy).

    Overlaps are between masks, at the image's size. Instances may come in any order; among equal scores the first
    is the better one.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.INSTANCES})

    method: Literal["matrix", "greedy"] = Field(
        "matrix", description="matrix lowers scores and keeps those above scoreThreshold; greedy removes masks."
    )
    kernel: Literal["gaussian", "linear"] = Field(
        "gaussian", description="matrix: decay of a score by an IoU, exp(-sigma IoU²) or 1 - IoU."
    )
    sigma: float = Field(2.0, gt=0, le=100, description="matrix, gaussian: strength of the decay.")
    score_threshold: float = Field(
        0.05,
        ge=0,
        le=1,
        description="matrix: least decayed score that is kept; a request's score_threshold overrides it.",
    )
    iou_threshold: float = Field(
        0.5, ge=0, le=1, description="greedy: masks whose IoU with a better one exceeds it are removed."
    )
    class_aware: bool = Field(True, description="Whether only masks of the same class count.")
    max_detections: int = Field(
        300, ge=1, le=10_000, description="Largest number of instances kept; a request's max_detections overrides it."
    )

    def __call__(self, value: Instances, request: RequestOptions) -> Instances:
        """Return the kept instances, best score first."""
        import numpy as np

        limit = request.most(self.max_detections)
        ranked = value.take(np.argsort(-value.scores, kind="stable").tolist())
        classes = ranked.classes if self.class_aware else np.zeros_like(ranked.classes)
        if self.method == "greedy":
            from segserve_builder.kernels.mask_nms import greedy_masks

            size = value.height, value.width
            return ranked.take(greedy_masks(ranked.masks, classes, *size, self.iou_threshold, limit).tolist())
        import numpy as np

        from segserve_builder.kernels.mask_nms import matrix_decay

        gaussian = self.kernel == "gaussian"
        decay = matrix_decay(ranked.masks, classes, ranked.height, ranked.width, gaussian=gaussian, sigma=self.sigma)
        scores = (ranked.scores * decay).astype(np.float32)
        least = request.least_score(self.score_threshold)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= np.float32(least)][:limit]
        return replace(ranked.take(order.tolist()), scores=scores[order])
