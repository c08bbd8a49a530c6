"""The family of detectors that answer with boxes already chosen, and a heat map a keypoint for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.detections import Role, detection_io, read_with_heads
from segserve_builder.stages.keypoints import Keypoints
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, HeatmapHeads, ResizeTransform, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkIO, NetworkSignature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline

NAME: Final = "keypoint-rcnn"
HEATMAPS: Final = Role(
    "heatmaps",
    frozenset({"heatmaps", "keypoints", "keypoint_logits", "keypoint_heatmaps", "pred_keypoint_heatmaps"}),
    ("FP32",),
    "[N, K, M, M]",
    (4,),
)


class KeypointRcnn:
    """Boxes FP32 [N, 4], labels INT64 or INT32 [N], scores FP32 [N], heat maps FP32 [N, K, M, M].

    Boxes are in pixels of the network's input and may be [N, 5] with the score. Heat maps are logits over each box, as
    the head gives them, one a keypoint. All may have a batch in front.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = False
    gives: ClassVar[ValueType] = ValueType.HEATMAPS
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(threshold=0.05), Keypoints())

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input, boxes, labels, heat maps, and scores if they are apart, or raise `SignatureError`."""
        return detection_io(NAME, signature, pipeline, HEATMAPS)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Candidates:
        """Return one image's boxes, in pixels of the original image, with their heat maps."""
        found, heatmaps = read_with_heads(NAME, outputs, placement, pipeline)
        if heatmaps.ndim not in HEATMAPS.ranks:
            raise SignatureError(f"the heat maps have shape {list(heatmaps.shape)}; they are {HEATMAPS.shape}")
        return replace(found, heads=HeatmapHeads(heatmaps))
