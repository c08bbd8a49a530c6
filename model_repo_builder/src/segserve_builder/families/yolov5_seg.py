"""The family of networks with a YOLO segmentation head that gives objectness, as YOLOv5 and v7 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.families.yolo import Layout, centred_boxes, network_io, read_head
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

LAYOUT: Final = Layout("yolov5-seg", axis=2, before=5, scored=True, masks=True)


class Yolov5Seg:
    """Two FP32 outputs: detections [batch, N, 5 + classes + K] and mask prototypes [batch, K, h, w].

    A detection is cx cy w h in pixels of the network's input, objectness, a score for every class, both in 0..1, and K
    coefficients; its score is that of its best class times its objectness. Coefficients times prototypes are the
    mask's logits.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    gives: ClassVar[Kind] = Kind.PROTOTYPES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (
        ScoreThreshold(),
        Nms(iou_threshold=0.45, max_detections=1000),
        CropMasks(),
    )

    def network_io(self, signature: Signature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input and the head's outputs, or raise `SignatureError`."""
        return network_io(LAYOUT, signature, pipeline)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: Placement, pipeline: Pipeline) -> Candidates:
        """Return all of one image's candidates, with boxes in pixels of the original image."""
        from segserve_builder.kernels.rows import best_of_rows

        number = len(pipeline.classes)
        head, heads = read_head(LAYOUT, outputs, number)
        classes, scores = best_of_rows(head, 4, 5, 5 + number)
        return Candidates(centred_boxes(head.T, placement), scores, classes, heads, placement)
