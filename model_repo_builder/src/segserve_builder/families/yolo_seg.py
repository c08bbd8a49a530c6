"""The family of networks with a YOLO segmentation head, as YOLOv8, v9, v11 and v12 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.families.yolo import Layout, best_class, centred_boxes, network_io, read_head
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, Kind, Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkIO, Signature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps import Pipeline

LAYOUT: Final = Layout("yolo-seg", axis=1, before=4, scored=True, masks=True)


class YoloSeg:
    """Two FP32 outputs: detections [batch, 4 + classes + K, N] and mask prototypes [batch, K, h, w].

    A detection is cx cy w h in pixels of the network's input, a score in 0..1 for every class, and K coefficients;
    coefficients times prototypes are the mask's logits. The two are told apart by their number of dimensions.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    gives: ClassVar[Kind] = Kind.PROTOTYPES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(), Nms(), CropMasks())

    def network_io(self, signature: Signature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input and the head's outputs, or raise `SignatureError`."""
        return network_io(LAYOUT, signature, pipeline)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: Placement, pipeline: Pipeline) -> Candidates:
        """Return all of one image's candidates, with boxes in pixels of the original image."""
        number = len(pipeline.classes)
        head, heads = read_head(LAYOUT, outputs, number)
        classes, scores = best_class(head[4 : 4 + number])
        return Candidates(centred_boxes(head, placement), scores, classes, heads, placement)
