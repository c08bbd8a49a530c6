"""Peaks of heat maps against torch's bicubic interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.keypoints import keypoints

# A position in a map of 60 pixels is a float32 to 4e-6, and neighbours here differ by less than ten.
TIE = 4e-5


def upsampled(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # In float32 torch's own rounding is ten times that of the kernel.
    from oracles.one_thread import functional, torch

    exact = torch.from_numpy(heat.astype(np.float64))[None, None]
    return functional.interpolate(exact, size, mode="bicubic")[0, 0].numpy()


def heads(n: int, k: int, h: int, w: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise or blobs, over boxes of up to 150 pixels, some of them empty."""
    rng = np.random.default_rng(seed)
    heatmaps = rng.normal(size=(n, k, h, w))
    if rng.random() < 0.5:
        cy, cx = rng.uniform(0, h, (n, k, 1, 1)), rng.uniform(0, w, (n, k, 1, 1))
        y, x = np.mgrid[:h, :w]
        heatmaps = 8 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 20) + heatmaps / 10
    corner = rng.uniform(-50, 500, (n, 2))
    return heatmaps.astype(np.float32), np.concatenate([corner, corner + rng.uniform(-5, 150, (n, 2))], 1).astype(
        np.float32
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
@example(n=2, k=4, h=56, w=6, seed=3_614_105_102)
def test_points_are_the_first_peaks_of_the_upsampled_maps(n: int, k: int, h: int, w: int, seed: int) -> None:
    heatmaps, boxes = heads(n, k, h, w, seed)

    points = keypoints(heatmaps, boxes)

    for box, maps, found in zip(boxes, heatmaps, points, strict=True):
        size = np.maximum(box[2:] - box[:2], np.float32(1))
        pixels = np.ceil(size).astype(int)
        where = (found[:, :2] - box[:2]) * pixels / size - 0.5
        assert np.abs(where - np.rint(where)).max() < 1e-2
        for heat, (x, y), value in zip(maps, np.rint(where).astype(int), found[:, 2], strict=True):
            large = upsampled(heat, (pixels[1], pixels[0]))
            assert large[y, x] == pytest.approx(value, abs=TIE)
            assert large.max() <= value + TIE


def test_of_equal_values_the_first_row_by_row_wins() -> None:
    flat = np.zeros((1, 1, 8, 8), np.float32)
    flat[0, 0, 3, 5] = flat[0, 0, 3, 2] = flat[0, 0, 6, 1] = 4

    assert keypoints(flat, np.array([[0, 0, 8, 8]], np.float32)).tolist() == [[[2.5, 3.5, 4]]]
    assert keypoints(flat * 0, np.array([[10, 20, 18, 28]], np.float32)).tolist() == [[[10.5, 20.5, 0]]]


@pytest.mark.parametrize("far", [1e6, 1e30, 3e38])
def test_a_huge_box_has_a_point_within_it(far: float) -> None:
    heatmaps, _ = heads(1, 1, 56, 56, seed=0)

    points = keypoints(heatmaps, np.array([[0, 0, far, far]], np.float32))

    assert np.isfinite(points).all()
    assert (points[..., :2] <= np.float32(far)).all()


@pytest.mark.parametrize("box", [(np.nan,) * 4, (0, 0, np.inf, 5), (np.inf, np.inf, 0, 0), (9, 9, 2, 2)])
def test_a_box_without_a_size_gives_some_point(box: tuple[float, ...]) -> None:
    heatmaps, _ = heads(1, 2, 9, 9, seed=0)

    assert keypoints(heatmaps, np.array([box], np.float32)).shape == (1, 2, 3)


def test_values_that_are_not_finite_do_not_crash() -> None:
    heatmaps = np.full((1, 1, 9, 9), np.nan, np.float32)

    assert keypoints(heatmaps, np.array([[0, 0, 20, 20]], np.float32)).shape == (1, 1, 3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="have shapes"):
        keypoints(np.zeros((2, 17, 56, 56), np.float32), np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match="have shapes"):
        keypoints(np.zeros((2, 17, 0, 56), np.float32), np.zeros((2, 4), np.float32))
