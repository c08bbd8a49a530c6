"""The family of networks with a YOLO segmentation head, as YOLOv8, v9, v11 and v12 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.yolo import Layout, ScoredHead
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import ValueType

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class YoloSeg(ScoredHead):
    """Two FP32 outputs: detections [batch, 4 + classes + K, N] and mask prototypes [batch, K, h, w].

    A detection is cx cy w h in pixels of the network's input, a score in 0..1 for every class, and K coefficients;
    coefficients times prototypes are the mask's logits. The two are told apart by their number of dimensions.
    """

    layout: ClassVar[Layout] = Layout("yolo-seg", axis=1, before=4, scored=True, masks=True)
    gives: ClassVar[ValueType] = ValueType.PROTOTYPES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(), Nms(), CropMasks())
