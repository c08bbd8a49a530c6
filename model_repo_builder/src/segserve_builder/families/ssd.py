"""The family of SSD and SSDlite: raw heads of a dense detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from segserve_builder.families import anchors
from segserve_builder.stages.decode_anchors import DecodeAnchors
from segserve_builder.stages.nms import Nms
from segserve_builder.values import Anchors, ResizeTransform, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkIO, NetworkSignature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline


class Ssd:
    """FP32 outputs `cls_logits` [batch, A, C], `bbox_regression` and `anchors` [batch, A, 4], by torchvision's names.

    Channel 0 of the logits is the background, the others are the classes of that id (softmax); channels of no class are
    left out. `bbox_regression` is dx dy dw dh times the weights 10, 10, 5, 5, `anchors` are the default boxes as x1 y1
    x2 y2 in pixels of the network's input.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = False
    gives: ClassVar[ValueType] = ValueType.ANCHORS
    default_postprocess: ClassVar[tuple[Stage, ...]] = (
        DecodeAnchors(
            activation="softmax", score_threshold=0.01, top_k=400, top_k_of="class", weights=(10.0, 10.0, 5.0, 5.0)
        ),
        Nms(iou_threshold=0.45, max_detections=200),
    )

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input and the heads' outputs, or raise `SignatureError`."""
        return anchors.network_io("ssd", signature, pipeline)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Anchors:
        """Return one image's heads and anchors."""
        return anchors.read(outputs, placement, pipeline)
