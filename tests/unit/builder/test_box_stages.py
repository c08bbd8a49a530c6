"""The stages softNms and maskNms: their options, and what a request overrides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.mask_nms import MaskNms
from segserve_builder.stages.soft_nms import SoftNms
from segserve_builder.values import Candidates, Instances, MaskHeads, ResizeTransform

WIDTHS = (10, 10, 8)  # of boxes or masks from the left edge, so that IoUs are 1 and 0.8
SCORES = (0.5, 0.9, 0.8)
CLASSES = (0, 0, 1)


def candidates() -> Candidates:
    boxes = np.array([[0, 0, width, 4] for width in WIDTHS], np.float32)
    heads = MaskHeads(np.arange(3, dtype=np.float32)[:, None, None])
    return Candidates(
        boxes, np.array(SCORES, np.float32), np.array(CLASSES, np.int32), heads, ResizeTransform.of(4, 12)
    )


def instances() -> Instances:
    some = candidates()
    bitmaps = [np.repeat([np.arange(12) < width], 4, axis=0).astype(np.uint8) for width in WIDTHS]
    return Instances(some.boxes, some.scores, some.classes, tuple(map(encode_bitmap, bitmaps)), 4, 12)


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"method": "linear"}, [0.9, 0.8]),
        ({"method": "linear", "classAware": False}, [0.9, 0.8 * 0.2]),
        ({"method": "linear", "classAware": False, "iouThreshold": 0.85}, [0.9, 0.8]),
        ({}, [0.9, 0.8, 0.5 * np.exp(-2)]),
        ({"sigma": 1}, [0.9, 0.8, 0.5 * np.exp(-1)]),
        ({"scoreThreshold": 0.1}, [0.9, 0.8]),
        ({"maxDetections": 1}, [0.9]),
    ],
)
def test_boxes_stay_with_the_scores_that_were_lowered(options: dict[str, Any], scores: list[float]) -> None:
    left = SoftNms.model_validate(options)(candidates(), RequestOptions())

    assert left.scores.tolist() == pytest.approx(scores)


def test_soft_nms_takes_heads_along() -> None:
    left = SoftNms()(candidates(), RequestOptions())

    assert left.heads.masks.ravel().tolist() == [1, 2, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({}, [0.9, 0.8, 0.5 * np.exp(-2)]),
        ({"sigma": 0.5}, [0.9, 0.8, 0.5 * np.exp(-0.5)]),
        ({"kernel": "linear"}, [0.9, 0.8]),
        ({"kernel": "linear", "classAware": False}, [0.9, 0.8 * 0.2]),
        ({"scoreThreshold": 0.1}, [0.9, 0.8]),
        ({"maxDetections": 1}, [0.9]),
        ({"method": "greedy"}, [0.9, 0.8]),
        ({"method": "greedy", "classAware": False}, [0.9]),
        ({"method": "greedy", "classAware": False, "iouThreshold": 0.85}, [0.9, 0.8]),
        ({"method": "greedy", "iouThreshold": 1}, [0.9, 0.8, 0.5]),
        ({"method": "greedy", "iouThreshold": 1, "maxDetections": 2}, [0.9, 0.8]),
    ],
)
def test_masks_are_suppressed_by_their_overlap(options: dict[str, Any], scores: list[float]) -> None:
    left = MaskNms.model_validate(options)(instances(), RequestOptions())

    assert left.scores.tolist() == pytest.approx(scores)
    rows = [SCORES.index(max(SCORES)), 2, 0][: len(scores)]
    assert left.masks == tuple(instances().masks[row] for row in rows)


@pytest.mark.parametrize(("stage", "value"), [(SoftNms(), candidates()), (MaskNms(), instances())])
@pytest.mark.parametrize(
    ("request_", "number"),
    [
        (RequestOptions(), 3),
        (RequestOptions(score_threshold=0.6), 2),
        (RequestOptions(max_detections=1), 1),
        (RequestOptions(score_threshold=0.95), 0),
    ],
)
def test_a_request_overrides_threshold_and_number(
    stage: Stage, value: Any, request_: RequestOptions, number: int
) -> None:
    assert len(stage(value, request_).scores) == number
