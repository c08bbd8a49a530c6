"""The family of networks with a YOLO detection head that has chosen among its boxes, as YOLOv10 and v26 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from segserve_builder.families.yolo import ChosenHead, Layout
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import ValueType

if TYPE_CHECKING:
    from segserve_builder.stages.base import Stage


class YoloNmsFreeDetect(ChosenHead):
    """One FP32 output: detections [batch, N, 6].

    A detection is x1 y1 x2 y2 in pixels of the network's input, its score in 0..1, and the number of its class. Rows
    without a score only fill the tensor.
    """

    layout: ClassVar[Layout] = Layout("yolo-nms-free-detect", axis=2, before=6, scored=False, masks=False)
    gives: ClassVar[ValueType] = ValueType.BOXES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(),)
