"""Non-maximum suppression against the plain quadratic algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.nms import nms


def plain(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, limit: int) -> list[int]:
    """Greedy suppression, in the words and the float32 arithmetic of torchvision.ops.batched_nms."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _plain(boxes, scores, classes, threshold, limit)


def _plain(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, limit: int) -> list[int]:
    keep: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(-scores, kind="stable"):
        if len(keep) == limit:
            break
        near = [j for j in keep if classes[j] == classes[i]]
        overlap = np.minimum(boxes[near, 2:], boxes[i, 2:]) - np.maximum(boxes[near, :2], boxes[i, :2])
        intersection = np.maximum(overlap, np.float32(0)).prod(axis=1)
        iou = intersection / (area[i] + area[near] - intersection)
        if not (iou.astype(np.float64) > threshold).any():
            keep.append(int(i))
    return keep


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.6, 0.7, 1.0]),
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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-20, 1.0, 1e15, 1e25]), st.integers(1, 60))
def test_inverted_flat_and_huge_boxes_are_treated_as_by_the_plain_algorithm(seed: int, size: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = (rng.integers(-5, 6, (n, 4)) * size).astype(np.float32)
    scores, classes = rng.choice([0.0, 0.5, 1.0], n).astype(np.float32), np.zeros(n, np.int32)

    assert nms(boxes, scores, classes, 0.3, n).tolist() == plain(boxes, scores, classes, 0.3, n)


@pytest.mark.parametrize("limit", [1, 10, 100, 10_000])
@pytest.mark.parametrize("kind", ["clusters", "all overlap", "none overlap", "few scores"])
def test_the_best_of_ten_thousand_are_those_of_the_whole_pass(kind: str, limit: int) -> None:
    rng, n = np.random.default_rng(limit), 10_000
    corner = rng.random((250, 2))[rng.integers(0, 250, n)] * 1000 + rng.random((n, 2)) * 20
    boxes = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
    if kind == "all overlap":
        boxes[:] = boxes[0]
    if kind == "none overlap":
        boxes = np.arange(n, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 5, 5], np.float32)
    scores = (rng.integers(0, 4, n) if kind == "few scores" else rng.random(n)).astype(np.float32)
    classes = rng.integers(0, 3, n).astype(np.int32)

    keep = nms(boxes, scores, classes, 0.5, limit)

    assert keep.tolist() == nms(boxes, scores, classes, 0.5, n + 1)[:limit].tolist()
    assert keep.tolist() == plain(boxes, scores, classes, 0.5, min(limit, 100))[: len(keep)] + keep.tolist()[100:]


def test_the_threshold_is_a_double_as_in_torchvision() -> None:
    boxes = np.array([[0, 0, 10, 1], [7, 0, 17, 1], [0, 0, 3, 1]], np.float32)  # the last is 0.3 of the first
    scores, classes = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32)

    # 0.3 in float32 is above the double 0.3.
    assert nms(boxes, scores, classes, 0.3, 9).tolist() == [0, 1]
    assert nms(boxes, scores, classes, float(np.float32(0.3)), 9).tolist() == [0, 1, 2]


@pytest.mark.parametrize("limit", [3, 1000])
def test_infinite_scores_are_sorted_and_nan_does_no_harm(limit: int) -> None:
    n = 1000
    boxes = np.arange(n, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 5, 5], np.float32)
    scores = np.random.default_rng(0).permutation(n).astype(np.float32)
    scores[[10, 20]] = np.inf, -np.inf
    boxes[30] = np.nan

    keep = nms(boxes, scores, np.zeros(n, np.int32), 0.5, limit)

    assert keep.tolist() == np.argsort(-scores, kind="stable")[:limit].tolist()
    scores[[1, 2, 3]] = np.nan
    assert len(nms(boxes, scores, np.zeros(n, np.int32), 0.5, limit)) == limit


def test_minus_zero_is_as_good_as_zero() -> None:
    apart = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [8, 8, 9, 9]], np.float32)

    keep = nms(apart, np.array([-0.0, 0.0, -1.0], np.float32), np.zeros(3, np.int32), 0.5, 9)

    assert keep.tolist() == [0, 1, 2]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        nms(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, np.int32), 0.5, 10)


def test_a_negative_class_is_refused() -> None:
    with pytest.raises(ValueError, match="class -1 is negative"):
        nms(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), np.full(1, -1, np.int32), 0.5, 10)
