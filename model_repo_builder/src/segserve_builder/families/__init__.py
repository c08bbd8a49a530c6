"""The registry of families: adding one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_builder.families.detr import Detr
from segserve_builder.families.detr_panoptic import DetrPanoptic
from segserve_builder.families.mask2former import Mask2Former
from segserve_builder.families.maskformer import MaskFormer
from segserve_builder.families.semantic_logits import SemanticLogits
from segserve_builder.families.yolo_seg import YoloSeg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.families.base import Family

FAMILIES: Final[Mapping[str, Family]] = {
    "semantic-logits": SemanticLogits(),
    "yolo-seg": YoloSeg(),
    "mask2former": Mask2Former(),
    "maskformer": MaskFormer(),
    "detr": Detr(),
    "detr-panoptic": DetrPanoptic(),
}
