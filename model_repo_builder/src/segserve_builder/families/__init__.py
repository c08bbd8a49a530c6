"""The registry of families: to add one, write a file and add a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from segserve_builder.families import anchors, detections, promptable, queries, semantic_labels, semantic_logits, yolo
from segserve_builder.families.base import Family

_ROWS: Final[tuple[Family, ...]] = (
    semantic_logits.SEMANTIC_LOGITS,
    semantic_logits.SEMANTIC_PROBABILITIES,
    semantic_labels.SEMANTIC_LABELS,
    yolo.YOLO_SEG,
    detections.MASK_RCNN,
    detections.FASTER_RCNN,
    detections.KEYPOINT_RCNN,
    anchors.RETINANET,
    anchors.SSD,
    yolo.YOLO_DETECT,
    yolo.YOLOV5_SEG,
    yolo.YOLOV5_DETECT,
    yolo.YOLO_NMS_FREE_SEG,
    yolo.YOLO_NMS_FREE_DETECT,
    yolo.RTDETR_ULTRALYTICS,
    yolo.YOLOX_DETECT,
    yolo.YOLO_POSE,
    yolo.YOLO_NMS_FREE_POSE,
    yolo.YOLO_OBB,
    yolo.YOLO_NMS_FREE_OBB,
    queries.MASK2FORMER,
    queries.MASKFORMER,
    queries.EOMT,
    queries.DETR,
    queries.DETR_PANOPTIC,
    queries.DETR_SIGMOID,
    queries.DETR_SIGMOID_SEG,
    queries.DEFORMABLE_DETR,
    promptable.PROMPTABLE,
    promptable.PROMPTABLE_SAM2,
)
FAMILIES: Final[Mapping[str, Family]] = {family.name: family for family in _ROWS}
