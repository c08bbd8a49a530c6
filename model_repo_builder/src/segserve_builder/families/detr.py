"""The family of DETR, which finds boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.queries import BOXES, CLASSES, QueryFamily, QueryOutput
from segserve_builder.stages.detection_queries import DetectionQueries

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class Detr(QueryFamily):
    """`logits` [batch, Q, classes + 1] and `pred_boxes` [batch, Q, 4] as cx cy w h in parts of the input, FP32 both."""

    outputs: ClassVar[tuple[QueryOutput, ...]] = (QueryOutput("logits", CLASSES), QueryOutput("pred_boxes", BOXES))
    default_postprocess: ClassVar[tuple[Stage, ...]] = (DetectionQueries(),)
