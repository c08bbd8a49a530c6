"""The family of detectors that answer with boxes already chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.families.detections import detection_io, read_detections
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, ResizeTransform, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkIO, NetworkSignature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline

NAME: Final = "faster-rcnn"


class FasterRcnn:
    """Boxes FP32 [N, 4] in pixels of the network's input, labels INT64 or INT32 [N] and scores FP32 [N].

    Boxes may be [N, 5] with the score; all may have a batch in front. The network has chosen among its boxes: Faster
    and Cascade R-CNN end so, and RetinaNet, SSD and FCOS where they were exported with their own NMS.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = False
    gives: ClassVar[ValueType] = ValueType.BOXES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(threshold=0.05),)

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input, boxes, labels, and scores if they are apart, or raise `SignatureError`."""
        return detection_io(NAME, signature, pipeline)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Candidates:
        """Return one image's boxes, in pixels of the original image."""
        return read_detections(NAME, outputs, placement, pipeline)
