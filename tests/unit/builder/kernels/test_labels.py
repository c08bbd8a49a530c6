"""Label maps of upsampled logits against torch's interpolate and grid_sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.labels import best_class, label_map
from segserve_builder.sampling import Axis, axes
from segserve_builder.values import ResizeTransform


def noise(channels: int, height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, height, width)).astype(np.float32)


def interpolated(logits: np.ndarray, height: int, width: int, aligned: bool = False) -> np.ndarray:
    from oracles.one_thread import functional, torch

    stacked = torch.from_numpy(np.ascontiguousarray(logits))[None]
    return functional.interpolate(stacked, (height, width), mode="bilinear", align_corners=aligned)[0].numpy()


def positions(size: int, inner: int, start: int, total: int, grid: int, aligned: bool) -> np.ndarray:
    """Where the pixels lie on the whole grid, counted from its first cell's centre, before any is clipped."""
    at = (np.arange(size) + 0.5) * inner / size + start
    if not aligned:
        return at * grid / total - 0.5
    return (at - 0.5) * ((grid - 1) / (total - 1) if total > 1 else 0)


def sampled(logits: np.ndarray, p: ResizeTransform, aligned: bool = False) -> np.ndarray:
    """The same in float64, on the cells whose centres show the image."""
    rows, columns = axes(p, *logits.shape[1:], align_corners=aligned)
    values = logits.astype(np.float64)
    down = positions(p.height, p.inner_height, p.top, p.input_height, logits.shape[1], aligned)
    across = positions(p.width, p.inner_width, p.left, p.input_width, logits.shape[2], aligned)
    for axis, at, cells in ((1, down, rows), (2, across, columns)):
        at = np.clip(at, cells.first, cells.first + cells.cells - 1)
        near = np.floor(at).astype(int)
        part = (at - near)[:, None] if axis == 1 else at - near
        far = np.minimum(near + 1, cells.first + cells.cells - 1)
        values = values.take(near, axis) * (1 - part) + values.take(far, axis) * part
    return values


@st.composite
def placements(draw: st.DrawFn) -> ResizeTransform:
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    inner_height, inner_width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    top, left = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    below, beside = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    size = (top + inner_height + below, left + inner_width + beside)
    return ResizeTransform(height, width, top, left, inner_height, inner_width, *size)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 200), st.integers(1, 200), st.integers(1, 12),
    st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_without_padding_labels_are_those_of_torch_but_for_float_ties(
    h: int, w: int, height: int, width: int, channels: int, aligned: bool, seed: int
) -> None:
    logits = noise(channels, h, w, seed)
    inner = (height, width) if aligned else (8 * h, 8 * w)
    rows, columns = axes(ResizeTransform(height, width, 0, 0, *inner, *inner), h, w, align_corners=aligned)

    labels = label_map(logits, rows, columns)

    upsampled = interpolated(logits, height, width, aligned)
    upsampled = np.concatenate([np.zeros_like(upsampled), upsampled]) if channels == 1 else upsampled
    chosen = np.take_along_axis(upsampled, labels[None].astype(np.int64), axis=0)[0]
    assert (upsampled.max(axis=0) - chosen).max() <= 1e-6


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("channels", [2, 21, 150])
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_half_a_million_pixels_are_those_of_torch(kind: str, channels: int, aligned: bool) -> None:
    logits = noise(channels, 64, 64, 1) if kind == "noise" else interpolated(noise(channels, 9, 11, 1), 64, 64)
    place = ResizeTransform.of(512, 1000)

    labels = label_map(logits, *axes(place, 64, 64, align_corners=aligned))

    assert np.array_equal(labels, interpolated(logits, 512, 1000, aligned).argmax(axis=0))


@settings(max_examples=150, deadline=None)
@given(
    placements(), st.integers(1, 30), st.integers(1, 30), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_padded_labels_are_those_of_exact_sampling_but_for_float_ties(
    transform: ResizeTransform, h: int, w: int, channels: int, aligned: bool, seed: int
) -> None:
    logits = noise(channels, h, w, seed)

    labels = label_map(logits, *axes(transform, h, w, align_corners=aligned))

    exact = sampled(logits, transform, aligned)
    exact = np.concatenate([np.zeros_like(exact), exact]) if channels == 1 else exact
    chosen = np.take_along_axis(exact, labels[None].astype(np.int64), axis=0)[0]
    assert (exact.max(axis=0) - chosen).max() < 2e-5


@pytest.mark.parametrize("threshold", [-1.5, 0.0, 0.7])
@pytest.mark.parametrize("size", [(16, 24), (40, 50)])
def test_one_channel_is_compared_with_the_threshold(threshold: float, size: tuple[int, int]) -> None:
    logits = noise(1, 16, 24, 3)

    labels = label_map(logits, *axes(ResizeTransform(*size, 0, 0, 16, 24, 16, 24), 16, 24), threshold)

    assert np.array_equal(labels, interpolated(logits, *size)[0] > np.float32(threshold))
    assert labels.dtype == np.uint8


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
@pytest.mark.parametrize("size", [(6, 7), (11, 13)])
def test_more_than_256_classes_need_16_bits(classes: int, dtype: type, size: tuple[int, int]) -> None:
    logits = noise(classes, 6, 7, 4)
    logits[-1, 2:4] += 9

    labels = label_map(logits, *axes(ResizeTransform(*size, 0, 0, 6, 7, 6, 7), 6, 7))

    assert labels.dtype == dtype
    assert np.array_equal(labels, interpolated(logits, *size).argmax(axis=0))


def test_ties_go_to_the_first_class() -> None:
    rows = columns = Axis.of(9, 4, 0, 4, 4)

    assert (label_map(np.ones((5, 4, 4), np.float32), rows, columns) == 0).all()


@pytest.mark.parametrize("channels", [2, 3, 300])
def test_huge_logits_are_compared_like_any(channels: int) -> None:
    logits = noise(channels, 5, 5, 6) * np.float32(1e4)

    labels = label_map(logits, *axes(ResizeTransform.of(40, 40), 5, 5))

    assert np.array_equal(labels, interpolated(logits, 40, 40).argmax(axis=0))


def test_aligned_corners_of_an_image_as_large_as_the_grid_are_a_crop() -> None:
    rows, columns = axes(ResizeTransform(20, 30, 5, 7, 20, 30, 32, 48), 32, 48, align_corners=True)

    assert rows.is_crop
    assert columns.is_crop


def test_logits_that_do_not_cover_the_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        label_map(noise(2, 4, 4, 0), *axes(ResizeTransform.of(8, 8), 8, 8))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(0, 5000), st.integers(0, 2**32 - 1))
def test_the_best_class_is_the_argmax(channels: int, n: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 9, (channels, n)).astype(np.float32)

    label, best = best_class(scores)

    assert np.array_equal(label, scores.argmax(axis=0))
    assert np.array_equal(best, scores.max(axis=0))
