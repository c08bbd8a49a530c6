"""The family of MaskFormer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.queries import CLASSES, MASKS, QueryFamily, QueryOutput
from segserve_builder.stages.panoptic_queries import PanopticQueries

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class MaskFormer(QueryFamily):
    """`class_queries_logits` [batch, Q, classes + 1] and `masks_queries_logits` [batch, Q, h, w], FP32 both."""

    outputs: ClassVar[tuple[QueryOutput, ...]] = (
        QueryOutput("class_queries_logits", CLASSES),
        QueryOutput("masks_queries_logits", MASKS),
    )
    default_postprocess: ClassVar[tuple[Stage, ...]] = (PanopticQueries(),)
