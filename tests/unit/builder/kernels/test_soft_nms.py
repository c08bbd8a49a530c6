"""Soft non-maximum suppression against the eager algorithm of its paper."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from segserve_builder.kernels.soft_nms import soft_nms


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
