"""Rotated rectangles against the formulas of their paper, and against the sides that a pixel's centre lies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.kernels.rotated import fill_rles, rotated_nms
from segserve_builder.values import ResizeTransform, RotatedHeads


def rectangles(number: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.random((number, 5)) * [60, 40, 50, 50, 4] + [0, 0, 0, 0, -1]).astype(np.float32)


def probabilistic_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return 1 minus the Hellinger distance of the normal distributions of two rectangles."""
    (mean, covariance), (mean2, covariance2) = _normal(one), _normal(other)
    middle, apart = (covariance + covariance2) / 2, mean - mean2
    product = np.linalg.det(covariance) * np.linalg.det(covariance2)
    bhattacharyya = apart @ np.linalg.inv(middle) @ apart / 8 + np.log(np.linalg.det(middle) / np.sqrt(product)) / 2
    return float(1 - np.sqrt(1 - np.exp(-bhattacharyya)))


def _normal(rectangle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, width, height, angle = rectangle.astype(np.float64)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.array([x, y]), turn @ np.diag([width**2 / 12, height**2 / 12]) @ turn.T


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.integers(1, 40))
def test_a_rectangle_stays_unless_it_overlaps_a_better_one_of_its_class(
    number: int, seed: int, threshold: float, limit: int
) -> None:
    boxes, random = rectangles(number, seed), np.random.default_rng(seed)
    scores, classes = random.random(number).astype(np.float32), random.integers(0, 2, number).astype(np.int32)
    best_first = np.argsort(-scores, kind="stable")
    expected = [
        index
        for place, index in enumerate(best_first)
        if not any(
            classes[better] == classes[index] and probabilistic_iou(boxes[better], boxes[index]) > threshold
            for better in best_first[:place]
        )
    ]

    assert rotated_nms(boxes, scores, classes, threshold, limit).tolist() == expected[:limit]


def test_a_rectangle_without_area_overlaps_nothing() -> None:
    boxes = np.array([[5, 5, 0, 4, 0], [5, 5, 0, 4, 0], [5, 5, 3, 4, 0]], np.float32)

    assert rotated_nms(boxes, np.ones(3, np.float32), np.zeros(3, np.int32), 0.5, 9).tolist() == [0, 1, 2]


def test_arrays_that_do_not_fit_are_refused_with_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 4\), \(3,\), \(3,\)"):
        rotated_nms(np.ones((3, 4), np.float32), np.ones(3, np.float32), np.zeros(3, np.int32), 0.5, 9)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 60))
def test_pixels_whose_centres_lie_inside_are_set(seed: int, height: int, width: int) -> None:
    corners = RotatedHeads(rectangles(5, seed)).corners(ResizeTransform(40, 60, 0, 0, 40, 60, 40, 60))
    y, x = np.mgrid[:height, :width] + 0.5
    for quadrilateral, counts in zip(corners.astype(np.float64), fill_rles(corners, height, width), strict=True):
        edges = np.roll(quadrilateral, -1, axis=0) - quadrilateral
        sides = [dx * (y - y0) - dy * (x - x0) for (x0, y0), (dx, dy) in zip(quadrilateral, edges, strict=True)]
        clear = np.abs(sides).min(axis=0) > 1e-6  # a centre on an edge may fall to either side
        within = np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)

        assert counts == encode_bitmap(decode_bitmap(counts, height, width))  # as others write it
        np.testing.assert_array_equal(decode_bitmap(counts, height, width)[clear], within[clear])


def test_masks_beyond_the_image_and_of_all_of_it_are_read_back() -> None:
    above, whole = np.array([[1, -9], [5, -9], [5, -2], [1, -2]]), np.array([[-1e30, -1e30], [1e30, -1e30]] * 2)
    whole[2:] = [[1e30, 1e30], [-1e30, 1e30]]

    assert fill_rles(np.array([above, whole], np.float32), 7, 9) == tuple(
        encode_bitmap(np.full((7, 9), value, np.uint8)) for value in (0, 1)
    )
