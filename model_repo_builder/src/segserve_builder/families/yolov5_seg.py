"""The family of networks with a YOLO segmentation head that gives objectness, as YOLOv5 and v7 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.yolo import Layout, ObjectnessHead
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import ValueType

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class Yolov5Seg(ObjectnessHead):
    """Two FP32 outputs: detections [batch, N, 5 + classes + K] and mask prototypes [batch, K, h, w].

    A detection is cx cy w h in pixels of the network's input, objectness, a score for every class, both in 0..1, and K
    coefficients; its score is that of its best class times its objectness. Coefficients times prototypes are the
    mask's logits.
    """

    layout: ClassVar[Layout] = Layout("yolov5-seg", axis=2, before=5, scored=True, masks=True)
    gives: ClassVar[ValueType] = ValueType.PROTOTYPES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (
        ScoreThreshold(),
        Nms(iou_threshold=0.45, max_detections=1000),
        CropMasks(),
    )
