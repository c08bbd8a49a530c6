"""The family of networks with a YOLO detection head, as YOLOv8, v9, v11 and v12 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.yolo import Layout, ScoredHead
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import ValueType

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class YoloDetect(ScoredHead):
    """One FP32 output: detections [batch, 4 + classes, N].

    A detection is cx cy w h in pixels of the network's input, and a score in 0..1 for every class.
    """

    layout: ClassVar[Layout] = Layout("yolo-detect", axis=1, before=4, scored=True, masks=False)
    gives: ClassVar[ValueType] = ValueType.BOXES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(), Nms())
