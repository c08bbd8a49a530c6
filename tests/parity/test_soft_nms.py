"""Soft non-maximum suppression as ensemble-boxes does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.soft_nms import SoftNms
from segserve_builder.values import Candidates, NoHeads, ResizeTransform

METHODS = {"linear": 1, "gaussian": 2}


def some_candidates(seed: int, n: int, classes: int) -> Candidates:
    """Boxes within 0..1, as ensemble-boxes wants them, with some area; all scores differ."""
    rng = np.random.default_rng(seed)
    corner = rng.random((max(n // 10, 1), 2))[rng.integers(0, max(n // 10, 1), n)] * 0.8 + rng.random((n, 2)) * 0.03
    boxes = np.concatenate([corner, corner + 0.01 + rng.random((n, 2)) * 0.15], axis=1).astype(np.float32)
    scores = ((rng.permutation(n) + 1) / n).astype(np.float32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    return Candidates(boxes, scores, labels, NoHeads(), ResizeTransform.of(1, 1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 150),
    classes=st.integers(1, 3),
    method=st.sampled_from(["linear", "gaussian"]),
    threshold=st.sampled_from([0.1, 0.5, 0.7]),
    sigma=st.sampled_from([0.1, 0.5, 2.0]),
    least=st.sampled_from([0.001, 0.2]),
)
def test_the_boxes_kept_are_those_of_ensemble_boxes(
    seed: int, n: int, classes: int, method: Any, threshold: float, sigma: float, least: float
) -> None:
    from ensemble_boxes import soft_nms as oracle

    value = some_candidates(seed, n, classes)
    scores = value.scores.astype(np.float64)
    boxes, firsts, labels = oracle([value.boxes], [scores], [value.classes], METHODS[method], threshold, sigma, least)

    left = SoftNms(method=method, iou_threshold=threshold, sigma=sigma, score_threshold=least)(value, RequestOptions())

    # It answers class by class with the first scores, which here tell the boxes apart.
    for label in range(classes):
        ours, theirs = left.classes == label, labels == label
        assert np.array_equal(left.boxes[ours], boxes[theirs])
        first = {tuple(box): score for box, score in zip(value.boxes.tolist(), scores, strict=True)}
        assert [first[tuple(box)] for box in left.boxes[ours].tolist()] == firsts[theirs].tolist()


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_the_lowered_scores_are_those_of_ensemble_boxes(method: Any) -> None:
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    value = some_candidates(0, 1000, 1)
    lowered = value.scores.astype(np.float64)
    keep = cpu_soft_nms_float(value.boxes.copy(), lowered, 0.5, 0.5, 0.001, METHODS[method])

    left = SoftNms(method=method, max_detections=1000)(value, RequestOptions())

    assert np.array_equal(left.boxes, value.boxes[keep])
    assert left.scores == pytest.approx(lowered[lowered > 0.001], abs=1e-6)
