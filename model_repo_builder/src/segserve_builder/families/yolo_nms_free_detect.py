"""The family of networks with a YOLO detection head that has chosen among its boxes, as YOLOv10 and v26 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.families.yolo import Layout, found, network_io, read_head
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, Kind, Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkIO, Signature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps import Pipeline

LAYOUT: Final = Layout("yolo-nms-free-detect", axis=2, before=6, scored=False, masks=False)


class YoloNmsFreeDetect:
    """One FP32 output: detections [batch, N, 6].

    A detection is x1 y1 x2 y2 in pixels of the network's input, its score in 0..1, and the number of its class. Rows
    without a score only fill the tensor.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    gives: ClassVar[Kind] = Kind.BOXES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(),)

    def network_io(self, signature: Signature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input and the head's outputs, or raise `SignatureError`."""
        return network_io(LAYOUT, signature, pipeline)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: Placement, pipeline: Pipeline) -> Candidates:
        """Return all of one image's candidates, with boxes in pixels of the original image."""
        head, heads = read_head(LAYOUT, outputs, len(pipeline.classes))
        return found(head, heads, placement, len(pipeline.classes))
