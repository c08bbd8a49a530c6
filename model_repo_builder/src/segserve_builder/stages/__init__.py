"""The registry of stages: to add one, write a file and add a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import Stage
from segserve_builder.stages.calibrate import Calibrate
from segserve_builder.stages.crf import Crf
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.decode import Decode
from segserve_builder.stages.decode_anchors import DecodeAnchors
from segserve_builder.stages.detection_queries import DetectionQueries
from segserve_builder.stages.fill_boxes import FillBoxes
from segserve_builder.stages.fill_holes import FillHoles
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.instances import InstancesFromLabels
from segserve_builder.stages.keep_largest import KeepLargest
from segserve_builder.stages.keypoints import Keypoints
from segserve_builder.stages.mask_nms import MaskNms
from segserve_builder.stages.morphology import Morphology
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.normalise import Normalise
from segserve_builder.stages.panoptic_fusion import PanopticFusion
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.stages.paste_masks import PasteMasks
from segserve_builder.stages.remove_small_regions import RemoveSmallRegions
from segserve_builder.stages.resize import Resize
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.stages.semantic_queries import SemanticQueries
from segserve_builder.stages.soft_nms import SoftNms
from segserve_builder.stages.temporal_smoothing import TemporalSmoothing
from segserve_builder.stages.tile import TiledInference
from segserve_builder.stages.tta import Tta

PREPROCESS: Final[Mapping[str, type[Stage]]] = {"decode": Decode, "resize": Resize, "normalise": Normalise}
INFERENCE: Final[Mapping[str, type[Stage]]] = {"tile": TiledInference, "tta": Tta}
"""Stages that change how the network runs over one image; they run within the network's step."""
POSTPROCESS: Final[Mapping[str, type[Stage]]] = {
    "calibrate": Calibrate,
    "argmax": Argmax,
    "multiLabel": MultiLabel,
    "scoreThreshold": ScoreThreshold,
    "decodeAnchors": DecodeAnchors,
    "nms": Nms,
    "softNms": SoftNms,
    "maskNms": MaskNms,
    "cropMasks": CropMasks,
    "pasteMasks": PasteMasks,
    "fillBoxes": FillBoxes,
    "keypoints": Keypoints,
    "morphology": Morphology,
    "removeSmallRegions": RemoveSmallRegions,
    "fillHoles": FillHoles,
    "keepLargest": KeepLargest,
    "semanticQueries": SemanticQueries,
    "instanceQueries": InstanceQueries,
    "panopticQueries": PanopticQueries,
    "detectionQueries": DetectionQueries,
    "panopticFusion": PanopticFusion,
    "instances": InstancesFromLabels,
    "crf": Crf,
    "temporalSmoothing": TemporalSmoothing,
}
