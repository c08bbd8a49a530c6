"""Areas and summed probabilities of labels against torch's interpolate, and softmax in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.probability import label_sums
from segserve_builder.sampling import axes
from segserve_builder.values import ResizeTransform


def reference(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0, aligned: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    # Sampled in float32, as labels are: where logits differ by hundreds, a rounding of the position is 1e-5 and more.
    from oracles.one_thread import functional, torch

    stacked = torch.tensor(logits)[None]
    upsampled = functional.interpolate(stacked, labels.shape, mode="bilinear", align_corners=aligned)
    probability = torch.softmax(upsampled[0].double() / temperature, 0).numpy()
    own = np.take_along_axis(probability, labels[None].astype(np.int64), axis=0)[0]
    return tuple(np.bincount(labels.ravel(), w, minlength=len(logits)) for w in (None, own.ravel()))  # type: ignore[return-value]


def close(logits: np.ndarray, labels: np.ndarray, **options: Any) -> bool:
    """Whether areas are equal and mean probabilities within 1e-5."""
    aligned = options.pop("aligned", False)
    rows, columns = axes(ResizeTransform.of(*labels.shape), *logits.shape[1:], align_corners=aligned)
    areas, sums = label_sums(logits, rows, columns, labels, **options)
    expected_areas, expected = reference(logits, labels, aligned=aligned, **options)
    gap = np.abs(sums - expected) / np.maximum(areas, 1)
    return np.array_equal(areas, expected_areas) and bool(gap.max() <= 1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.integers(1, 90), st.integers(1, 600),
    st.sampled_from([0.1, 3.0, 40.0]), st.sampled_from([0.3, 1.0, 4.0]), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_means_are_those_of_torch_whatever_the_labels(
    classes: int, h: int, w: int, height: int, width: int, spread: float, temperature: float, aligned: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(classes, h, w)) * spread).astype(np.float32)
    labels = rng.integers(0, classes, (height, width)).astype(np.uint8)

    assert close(logits, labels, temperature=temperature, aligned=aligned)


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (300, np.uint16)])
@pytest.mark.parametrize("size", [(16, 24), (77, 701)])
def test_most_probable_labels_of_many_classes(classes: int, dtype: type, size: tuple[int, int]) -> None:
    from oracles.one_thread import functional, torch

    rng = np.random.default_rng(classes)
    logits = (rng.normal(size=(classes, 16, 24)) * 6).astype(np.float32)
    upsampled = functional.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear")[0].numpy()

    assert close(logits, upsampled.argmax(axis=0).astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_parts_of_a_map_have_the_means_of_their_own_pixels(dtype: type) -> None:
    from oracles.one_thread import functional, torch

    rng = np.random.default_rng(7)
    logits = (rng.normal(size=(5, 12, 15)) * 3).astype(np.float32)
    labels = rng.integers(0, 5, (50, 131)).astype(dtype)
    parts = rng.integers(0, 900, labels.shape).astype(np.int32)

    areas, sums = label_sums(logits, *axes(ResizeTransform.of(*labels.shape), 12, 15), labels, 2.0, parts)

    stacked = functional.interpolate(torch.from_numpy(logits)[None], labels.shape, mode="bilinear")[0]
    probability = torch.softmax(stacked.double() / 2.0, 0).numpy()
    own = np.take_along_axis(probability, labels[None].astype(np.int64), axis=0)[0]
    assert areas.tolist() == np.bincount(parts.ravel()).tolist()
    assert sums == pytest.approx(np.bincount(parts.ravel(), own.ravel()), abs=1e-4)


def test_parts_of_another_shape_are_refused() -> None:
    labels, parts = np.zeros((6, 7), np.uint8), np.zeros((6, 6), np.int32)
    grid = axes(ResizeTransform.of(6, 7), 6, 7)

    with pytest.raises(ValueError, match=r"parts of shape \(6, 6\); the labels' is \(6, 7\)"):
        label_sums(np.zeros((2, 6, 7), np.float32), *grid, labels, 1.0, parts)


def test_huge_logits_give_probabilities_of_0_and_1() -> None:
    logits = np.array([[[1e4, -1e4]], [[-1e4, 1e4]], [[0, 0]]], np.float32)
    labels = np.array([[0, 1, 1, 2]], np.uint8)

    areas, sums = label_sums(logits, *axes(ResizeTransform.of(1, 4), 1, 2), labels)

    assert areas.tolist() == [1, 2, 1]
    assert sums.tolist() == pytest.approx([1, 0 + 1, 0], abs=1e-6)


def test_logits_and_labels_may_be_strided_and_read_only() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 8, 18)).astype(np.float32)[:, ::2, ::3]
    labels = np.random.default_rng(0).integers(0, 3, (20, 60)).astype(np.uint8)[:, ::2]
    logits.setflags(write=False)
    labels.setflags(write=False)

    assert close(logits, labels)


@pytest.mark.parametrize("labels", [np.full((8, 8), 3, np.uint8), np.zeros((7, 8), np.uint8)])
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(8, 8\) of fewer than 3 are expected"):
        label_sums(np.zeros((3, 4, 4), np.float32), *axes(ResizeTransform.of(8, 8), 4, 4), labels)


def test_logits_that_do_not_cover_the_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        label_sums(np.zeros((3, 4, 4), np.float32), *axes(ResizeTransform.of(8, 8), 8, 8), np.zeros((8, 8), np.uint8))
