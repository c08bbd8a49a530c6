"""The registry of families: adding one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_builder.families.detr import Detr
from segserve_builder.families.detr_panoptic import DetrPanoptic
from segserve_builder.families.faster_rcnn import FasterRcnn
from segserve_builder.families.keypoint_rcnn import KeypointRcnn
from segserve_builder.families.mask2former import Mask2Former
from segserve_builder.families.mask_rcnn import MaskRcnn
from segserve_builder.families.maskformer import MaskFormer
from segserve_builder.families.retinanet import RetinaNet
from segserve_builder.families.semantic_logits import SemanticLogits
from segserve_builder.families.ssd import Ssd
from segserve_builder.families.yolo_detect import YoloDetect
from segserve_builder.families.yolo_nms_free_detect import YoloNmsFreeDetect
from segserve_builder.families.yolo_nms_free_seg import YoloNmsFreeSeg
from segserve_builder.families.yolo_seg import YoloSeg
from segserve_builder.families.yolov5_detect import Yolov5Detect
from segserve_builder.families.yolov5_seg import Yolov5Seg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.families.base import Family

FAMILIES: Final[Mapping[str, Family]] = {
    "semantic-logits": SemanticLogits(),
    "yolo-seg": YoloSeg(),
    "mask-rcnn": MaskRcnn(),
    "faster-rcnn": FasterRcnn(),
    "keypoint-rcnn": KeypointRcnn(),
    "retinanet": RetinaNet(),
    "ssd": Ssd(),
    "yolo-detect": YoloDetect(),
    "yolov5-seg": Yolov5Seg(),
    "yolov5-detect": Yolov5Detect(),
    "yolo-nms-free-seg": YoloNmsFreeSeg(),
    "yolo-nms-free-detect": YoloNmsFreeDetect(),
    "mask2former": Mask2Former(),
    "maskformer": MaskFormer(),
    "detr": Detr(),
    "detr-panoptic": DetrPanoptic(),
}
