"""The family of networks with a YOLO detection head that gives objectness, as YOLOv5 and v7 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.yolo import Layout, ObjectnessHead
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import ValueType

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class Yolov5Detect(ObjectnessHead):
    """One FP32 output: detections [batch, N, 5 + classes].

    A detection is cx cy w h in pixels of the network's input, objectness, and a score for every class, both in 0..1;
    its score is that of its best class times its objectness. YOLOv7 takes the objectness alone where there is one
    class, whose own score it does not train.
    """

    layout: ClassVar[Layout] = Layout("yolov5-detect", axis=2, before=5, scored=True, masks=False)
    gives: ClassVar[ValueType] = ValueType.BOXES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (
        ScoreThreshold(),
        Nms(iou_threshold=0.45, max_detections=1000),
    )
