"""Non-maximum suppression against the plain quadratic algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.nms import nms


def plain(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, limit: int) -> list[int]:
    """Greedy suppression, in the words and the float32 arithmetic of torchvision.ops.batched_nms."""
    keep: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(-scores, kind="stable"):
        if len(keep) == limit:
            break
        near = [j for j in keep if classes[j] == classes[i]]
        overlap = np.minimum(boxes[near, 2:], boxes[i, 2:]) - np.maximum(boxes[near, :2], boxes[i, :2])
        intersection = np.maximum(overlap, np.float32(0)).prod(axis=1)
        with np.errstate(invalid="ignore"):
            iou = intersection / (area[i] + area[near] - intersection)
        if not (iou > np.float32(threshold)).any():
            keep.append(int(i))
    return keep


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from([1, 7, 100, 1000]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_kept_boxes_are_those_of_the_plain_algorithm(
    n: int, number: int, threshold: float, limit: int, tied: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (n, 2)) if tied else rng.random((n, 2)) * 60
    boxes = np.concatenate([corner, corner + rng.integers(0, 30, (n, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(-3, 4, n) / 3 if tied else rng.normal(size=n)).astype(np.float32)
    classes = rng.integers(0, number, n).astype(np.int32)

    keep = nms(boxes, scores, classes, threshold, limit)

    assert keep.tolist() == plain(boxes, scores, classes, threshold, limit)


def test_many_equal_scores_keep_their_order() -> None:
    n = 5000
    boxes = np.arange(n, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 5, 5], np.float32)
    scores = np.where(np.arange(n) == n - 1, 1e-30, 0.5).astype(np.float32)

    keep = nms(boxes, scores, np.zeros(n, np.int32), 0.5, n)

    assert keep.tolist() == list(range(n))


def test_scores_within_one_bucket_are_sorted() -> None:
    n = 5000
    boxes = np.arange(n, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 5, 5], np.float32)
    scores = (0.5 + np.random.default_rng(0).permutation(n) * 1e-7).astype(np.float32)
    scores[0] = 1e-30

    keep = nms(boxes, scores, np.zeros(n, np.int32), 0.5, n)

    assert keep.tolist() == np.argsort(-scores, kind="stable").tolist()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        nms(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, np.int32), 0.5, 10)


def test_a_negative_class_is_refused() -> None:
    with pytest.raises(ValueError, match="class -1 is negative"):
        nms(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), np.full(1, -1, np.int32), 0.5, 10)
