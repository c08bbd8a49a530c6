"""The family of DETR with a mask head."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.queries import BOXES, CLASSES, MASKS, QueryFamily, QueryOutput
from segserve_builder.stages.panoptic_queries import PanopticQueries

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class DetrPanoptic(QueryFamily):
    """`logits` [batch, Q, classes + 1], `pred_boxes` [batch, Q, 4] and `pred_masks` [batch, Q, h, w], FP32 all."""

    outputs: ClassVar[tuple[QueryOutput, ...]] = (
        QueryOutput("logits", CLASSES),
        QueryOutput("pred_boxes", BOXES),
        QueryOutput("pred_masks", MASKS),
    )
    default_postprocess: ClassVar[tuple[Stage, ...]] = (PanopticQueries(),)
