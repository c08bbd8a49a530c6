"""The family of detectors that answer with boxes already chosen, and a low-resolution mask for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.detections import Role, detection_io, read_with_heads
from segserve_builder.families.signature import described
from segserve_builder.stages.paste_masks import PasteMasks
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, MaskHeads, ResizeTransform, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkIO, NetworkSignature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import Float32

NAME: Final = "mask-rcnn"
MASKS: Final = Role(
    "masks",
    frozenset({"masks", "pred_masks"}),
    ("FP32",),
    "[N, M, M], [N, 1, M, M] or [N, classes, M, M]",
    (3, 4),
)
LARGEST_HEAD: Final = 256
"""Raw masks are 14 to 112 cells wide, PointRend's 224; what is larger has been pasted into an image."""


class MaskRcnn:
    """Boxes FP32 [N, 4], labels INT64 or INT32 [N], scores FP32 [N], masks FP32 [N, 1, M, M]: a two-stage detector's.

    Boxes are in pixels of the network's input and may be [N, 5] with the score. Masks are probabilities over each box,
    M x M cells as the head gives them; they may have a channel a label, or none. All may have a batch in front.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = False
    gives: ClassVar[ValueType] = ValueType.MASK_HEADS
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(threshold=0.05), PasteMasks())

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input, boxes, labels, masks, and scores if they are apart, or raise `SignatureError`."""
        io = detection_io(NAME, signature, pipeline, MASKS)
        masks = io.outputs[2]
        _check_raw(f"output {described(masks)}", *masks.shape[-2:])
        return io

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Candidates:
        """Return one image's boxes, in pixels of the original image, with the mask of each one's own label."""
        found, masks = read_with_heads(NAME, outputs, placement, pipeline)
        if masks.ndim not in MASKS.ranks:
            raise SignatureError(f"the masks have shape {list(masks.shape)}; for one image they are {MASKS.shape}")
        _check_raw(f"the masks have shape {list(masks.shape)}", *masks.shape[-2:])
        own = masks if masks.ndim == 3 else _of_labels(masks, found.classes)
        if own.size and not 0 <= own.min() <= own.max() <= 1:
            seen = f"{own.min():.4g} to {own.max():.4g}"
            raise SignatureError(f"the masks are probabilities, 0 to 1; here they are {seen}: export their sigmoid")
        return replace(found, heads=MaskHeads(own))


def _check_raw(seen: str, height: int | None, width: int | None) -> None:
    sizes = [size for size in (height, width) if size is not None]
    if max(sizes, default=1) > LARGEST_HEAD or len(set(sizes)) > 1:
        raise SignatureError(
            f"{seen}: masks of {height or '?'} x {width or '?'} are already pasted into the image, which is slow; "
            f"export the raw heads, M x M (28 x 28) a box and at most {LARGEST_HEAD} x {LARGEST_HEAD}"
        )


def _of_labels(masks: Float32, labels: NDArray[Any]) -> Float32:
    """Return each box's mask of its own label, where there is one a label."""
    import numpy as np

    channels = masks.shape[1]
    if channels == 1:
        return masks[:, 0]
    if labels.size and labels.max() >= channels:
        raise SignatureError(f"the masks have {channels} channels, one a label; label {labels.max()} has none")
    own: Float32 = masks[np.arange(len(labels)), labels]
    return own
