"""Roboflow's supervision: `Detections` and `KeyPoints`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from segserve.errors import package_of_extra
from segserve.results.annotation import AnnotatedResult, Annotation
from segserve.results.masks import runs_of

if TYPE_CHECKING:
    from supervision import Detections, KeyPoints
    from supervision.detection.compact_mask import CompactMask


def detections(result: AnnotatedResult, *, compact: bool) -> Detections:
    """Return the `Detections` of a result; see `Segmentation.to_supervision`."""
    sv = _supervision()
    annotations = list(result.annotations())
    has_masks = bool(annotations) and all(one.mask is not None for one in annotations)
    scored = [one.score for one in annotations if one.score is not None]
    return sv.Detections(  # type: ignore[no-any-return]
        xyxy=np.array([one.box for one in annotations], np.float32).reshape(-1, 4),
        mask=(_compact(annotations, result.size) if compact else _stacked(annotations, result.size))
        if has_masks
        else None,
        confidence=np.array(scored, np.float32) if len(scored) == len(annotations) else None,
        class_id=np.array([one.class_id for one in annotations], int),
        data={"class_name": np.array([one.class_name for one in annotations], dtype=str)},
    )


def key_points(result: AnnotatedResult) -> KeyPoints:
    """Return the `KeyPoints` of the objects; see `KeypointResult.to_key_points`."""
    sv = _supervision()
    objects = list(result.annotations())
    points = np.stack([one.points for one in objects]) if objects else np.zeros((0, 0, 3), np.float32)  # type: ignore[misc]
    return sv.KeyPoints(  # type: ignore[no-any-return]
        xy=points[:, :, :2].copy(),
        keypoint_confidence=points[:, :, 2].copy(),
        detection_confidence=np.array([one.score for one in objects], np.float32),
        class_id=np.array([one.class_id for one in objects], int),
        data={"class_name": np.array([one.class_name for one in objects], dtype=str)},
    )


def _stacked(annotations: list[Annotation], size: tuple[int, int]) -> Any:
    masks = np.zeros((len(annotations), *size), np.bool_)
    for mask, one in zip(masks, annotations, strict=True):
        if one.mask is not None:
            patch = one.mask.patch()
            mask[patch.window] = patch.pixels
    return masks


def _compact(annotations: list[Annotation], size: tuple[int, int]) -> CompactMask:
    from supervision.detection.compact_mask import CompactMask

    masks = [one.mask for one in annotations if one.mask is not None]
    # CompactMask's boxes include their last pixels.
    boxes = runs_of(masks).boxes().astype(np.float32) - (0, 0, 1, 1)
    return CompactMask.from_coco_rle([mask.rle for mask in masks], boxes, size)


def _supervision() -> Any:
    return package_of_extra("supervision", "annotations", "a result of supervision")
