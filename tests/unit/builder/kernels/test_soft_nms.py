"""Soft non-maximum suppression against the eager algorithm of its paper."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.soft_nms import soft_nms


def plain(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    method: str,
    iou_threshold: float,
    sigma: float,
    least: float,
    limit: int,
) -> tuple[list[int], list[float]]:
    """The best box lowers the scores of all that are left, over and over."""
    wide, now = boxes.astype(np.float64), scores.astype(np.float64)
    area = (wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1])
    keep: list[int] = []
    left: list[float] = []
    free = now > least
    while free.any() and len(keep) < limit:
        i = int(np.argmax(np.where(free, now, -1)))
        keep.append(i)
        left.append(now[i])
        free[i] = False
        overlap = np.minimum(wide[:, 2:], wide[i, 2:]) - np.maximum(wide[:, :2], wide[i, :2])
        shared = np.maximum(overlap, 0).prod(axis=1)
        iou = np.divide(shared, area[i] + area - shared, out=np.zeros_like(shared), where=shared > 0)
        weight = np.where(iou > iou_threshold, 1 - iou, 1) if method == "linear" else np.exp(-(iou**2) / sigma)
        now = np.where(classes == classes[i], now * weight, now)
        free &= now > least
    return keep, left


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 200),
    st.integers(1, 4),
    st.sampled_from(["linear", "gaussian"]),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.05, 0.5, 3.0]),
    st.sampled_from([0.0, 0.001, 0.3, 1.0]),
    st.sampled_from([1, 20, 1000]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_boxes_and_scores_are_those_of_the_eager_algorithm(
    n: int, number: int, method: Any, iou: float, sigma: float, least: float, limit: int, tied: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (n, 2)) if tied else rng.random((n, 2)) * 60
    boxes = np.concatenate([corner, corner + rng.integers(-3, 30, (n, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(0, 5, n) / 4 if tied else rng.random(n)).astype(np.float32)
    classes = rng.integers(0, number, n).astype(np.int32)
    # Exponentials of two libraries differ by a rounding, which would settle ties either way.
    options = ("linear" if tied else method, iou, sigma, least, limit)

    keep, left = soft_nms(boxes, scores, classes, *options)

    expected, lowered = plain(boxes, scores, classes, *options)
    assert keep.tolist() == expected
    assert left.tolist() == pytest.approx(lowered, rel=1e-6)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("same", [True, False])
def test_ten_thousand_boxes_that_all_overlap_or_that_none_does(
    method: Literal["linear", "gaussian"], same: bool
) -> None:
    n = 10_000
    corner = np.zeros((n, 1)) if same else np.arange(n)[:, None] * 10
    boxes = (corner + np.array([0, 0, 5, 5])).astype(np.float32)
    scores = np.linspace(0.1, 1, n).astype(np.float32)

    keep, left = soft_nms(boxes, scores, np.zeros(n, np.int32), method, 0.5, 0.5, 0.05, n)

    if same:
        assert keep.tolist() == ([n - 1] if method == "linear" else [n - 1, n - 2])
        assert left[1:].tolist() == pytest.approx([scores[-2] * np.exp(-2)] if method == "gaussian" else [])
    else:
        assert keep.tolist() == list(range(n))[::-1]
        assert np.array_equal(left, scores[::-1])


def test_no_box_overlaps_with_one_of_no_area() -> None:
    flat = np.array([[0, 0, 5, 0], [0, 0, 5, 0], [5, 5, 0, 0]], np.float32)

    keep, left = soft_nms(flat, np.full(3, 0.5, np.float32), np.zeros(3, np.int32), "gaussian", 0.5, 0.5, 0.1, 9)

    assert (keep.tolist(), left.tolist()) == ([0, 1, 2], [0.5] * 3)


def test_huge_boxes_do_no_harm() -> None:
    huge = np.array([[-1e30, -1e30, 1e30, 1e30]] * 2, np.float32)

    keep, _ = soft_nms(huge, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32), "linear", 0.5, 0.5, 0.1, 9)

    assert keep[0] == 0


@pytest.mark.parametrize(("sigma", "least"), [(0.0, 0.1), (0.5, -0.1)])
def test_options_that_would_raise_scores_are_refused(sigma: float, least: float) -> None:
    one = np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)

    with pytest.raises(ValueError, match="allowed are > 0 and >= 0"):
        soft_nms(*one, "gaussian", 0.5, sigma, least, 9)
