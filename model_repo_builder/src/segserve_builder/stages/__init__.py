"""The registry of stages: adding one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.decode import Decode
from segserve_builder.stages.detection_queries import DetectionQueries
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.morphology import Morphology
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.normalise import Normalise
from segserve_builder.stages.panoptic_fusion import PanopticFusion
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.stages.remove_small_regions import RemoveSmallRegions
from segserve_builder.stages.resize import Resize
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.stages.semantic_queries import SemanticQueries
from segserve_builder.stages.tile import Tile
from segserve_builder.stages.tta import Tta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.stages.base import Stage

PREPROCESS: Final[Mapping[str, type[Stage]]] = {"decode": Decode, "resize": Resize, "normalise": Normalise}
INFERENCE: Final[Mapping[str, type[Stage]]] = {"tile": Tile, "tta": Tta}
"""How the network is run over one image; these run within the network's step."""
POSTPROCESS: Final[Mapping[str, type[Stage]]] = {
    "argmax": Argmax,
    "scoreThreshold": ScoreThreshold,
    "nms": Nms,
    "cropMasks": CropMasks,
    "morphology": Morphology,
    "removeSmallRegions": RemoveSmallRegions,
    "semanticQueries": SemanticQueries,
    "instanceQueries": InstanceQueries,
    "panopticQueries": PanopticQueries,
    "detectionQueries": DetectionQueries,
    "panopticFusion": PanopticFusion,
}
