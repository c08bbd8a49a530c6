"""The guided filter against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.guided import guided_filter
from segserve_builder.sampling import Axis

LUMA = np.array([0.299, 0.587, 0.114]) / 255


def identity(size: int) -> Axis:
    return Axis.of(size, size, 0, size, size)


def box(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean over each pixel's window, cut off at the edges."""
    out = np.empty_like(values)
    for y, x in np.ndindex(*values.shape):
        out[y, x] = values[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1].mean()
    return out


def coefficients(values: np.ndarray, guide: np.ndarray, radius: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    mean, mean_guide = box(values, radius), box(guide, radius)
    slope = (box(guide * values, radius) - mean_guide * mean) / (box(guide * guide, radius) - mean_guide**2 + eps)
    return box(slope, radius), box(mean - slope * mean_guide, radius)


def by_definition(values: np.ndarray, image: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Probabilities (H, W, 8) of `values` (H, W, 8)."""
    guide = image @ LUMA
    filtered = []
    for k in range(8):
        slope, offset = coefficients(values[..., k].astype(float), guide, radius, eps)
        filtered.append(np.maximum(slope * guide + offset, 1e-6))
    out = np.stack(filtered, -1)
    return out / out.sum(-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 14), st.integers(1, 17), st.integers(0, 20), st.sampled_from([1e-5, 1e-3, 0.1]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_filtered_probabilities_are_those_of_the_definition(
    height: int, width: int, radius: int, eps: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    values = rng.random((1, height, width, 8)).astype(np.float32)
    values.setflags(write=False)

    scores = guided_filter(values, image, radius, eps, image, identity(height), identity(width))

    expected = by_definition(values[0], image, radius, eps)
    np.testing.assert_allclose(np.exp(scores[0]), expected, atol=2e-5)


def test_a_low_resolution_is_applied_to_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    full = rng.integers(0, 256, (10, 14, 3)).astype(np.uint8)
    values = rng.dirichlet(np.ones(8), (2, 5, 7)).astype(np.float32) / 2
    rows, columns = Axis.of(10, 5, 0, 5, 5), Axis.of(14, 7, 0, 7, 7)

    scores = guided_filter(values, low, 1, 1e-2, full, rows, columns)

    def sampled(array: np.ndarray) -> np.ndarray:
        y, x = np.clip((np.arange(10) - 0.5) / 2, 0, 4), np.clip((np.arange(14) - 0.5) / 2, 0, 6)
        wide = np.array([np.interp(x, np.arange(7), row) for row in array])
        return np.array([np.interp(y, np.arange(5), column) for column in wide.T]).T

    expected = np.empty((2, 10, 14, 8))
    for g, k in np.ndindex(2, 8):
        slope, offset = coefficients(values[g, ..., k].astype(float), low @ LUMA, 1, 1e-2)
        expected[g, ..., k] = np.maximum(sampled(slope) * (full @ LUMA) + sampled(offset), 1e-6)
    expected /= expected.sum((0, 3), keepdims=True)
    np.testing.assert_allclose(np.exp(scores), expected, atol=1e-5)


def test_a_guide_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(4, 6, 3\); uint8 \(4, 5, 3\) is expected"):
        guided_filter(
            np.zeros((1, 4, 5, 8), np.float32), np.zeros((4, 6, 3), np.uint8), 1, 0.1, np.zeros((4, 5, 3), np.uint8),
            identity(4), identity(5),
        )  # fmt: skip
