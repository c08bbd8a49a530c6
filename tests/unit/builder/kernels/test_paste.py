"""Pasted masks against float64 arithmetic and detectron2's grid_sample, with pycocotools for the encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segserve_builder.kernels.paste import paste_rles

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2
SIZES = st.integers(1, 150)
SEEDS = st.integers(0, 2**32 - 1)
TIE = 5e-6  # both sides are float32 sums, rounded in another order


def head(n: int, side: int, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy or smooth probabilities, and boxes of all sizes, some of which leave the image."""
    from oracles.one_thread import functional, torch

    rng = np.random.default_rng(seed)
    masks = rng.random((n, side, side))
    if rng.random() < 0.5 and side > 4 and n:
        masks = functional.interpolate(torch.from_numpy(masks[None, :, ::4, ::4]), (side, side), mode="bilinear")[
            0
        ].numpy()
    corner = rng.uniform(-0.4, 1.1, (n, 2)) * (width, height)
    size = np.exp(rng.uniform(-4, 0.5, (n, 2))) * (width, height)
    return masks.astype(np.float32), np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def decoded(counts: tuple[bytes, ...], height: int, width: int) -> np.ndarray:
    masks = [coco.decode({"size": [height, width], "counts": c}) for c in counts]
    return np.array(masks).reshape(-1, height, width) > 0


def bilinear(mask: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The mask at rows y and columns x, which lie within it."""
    i, j = np.minimum(y.astype(int), len(mask) - 1), np.minimum(x.astype(int), len(mask) - 1)
    below, beside = np.minimum(i + 1, len(mask) - 1), np.minimum(j + 1, len(mask) - 1)
    v, u = (y - i)[:, None], x - j
    upper, lower = mask[i], mask[below]
    return (1 - v) * ((1 - u) * upper[:, j] + u * upper[:, beside]) + v * ((1 - u) * lower[:, j] + u * lower[:, beside])


def by_torchvision(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values as torchvision defines them: boxes in float32, the rest in float64."""
    padded, factor = np.pad(mask.astype(np.float64), 1), np.float32((len(mask) + 2) / len(mask))
    half, middle = (box[2:] - box[:2]) * np.float32(0.5) * factor, (box[2:] + box[:2]) * np.float32(0.5)
    low, high = (middle - half).astype(np.int64), (middle + half).astype(np.int64)
    values = np.zeros((height, width))
    pixels = [
        np.arange(max(a, 0), max(min(b + 1, end), 0)) for a, b, end in zip(low, high, (width, height), strict=True)
    ]
    if min(map(len, pixels)):
        sizes = np.maximum(high - low + 1, 1)
        x, y = (
            np.maximum((p - a + 0.5) * float(np.float32(len(padded)) / np.float32(n)) - 0.5, 0)
            for p, a, n in zip(pixels, low, sizes, strict=True)
        )
        values[pixels[1][0] : pixels[1][-1] + 1, pixels[0][0] : pixels[0][-1] + 1] = bilinear(padded, y, x)
    return values


def by_detectron2(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values as detectron2's paste_masks_in_image has them on a CPU: float32, in a window around the box."""
    from oracles.one_thread import functional, torch

    x0, y0, x1, y1 = torch.from_numpy(box)
    left, top = max(int(x0.floor()) - 1, 0), max(int(y0.floor()) - 1, 0)
    right, bottom = min(int(x1.ceil()) + 1, width), min(int(y1.ceil()) + 1, height)
    values = np.zeros((height, width), np.float32)
    if right > left and bottom > top:
        x = (torch.arange(left, right, dtype=torch.float32) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, dtype=torch.float32) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2)[None]
        sampled = functional.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)
        values[top:bottom, left:right] = sampled[0, 0].numpy()
    return values


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 5), st.sampled_from([1, 2, 7, 14, 28, 30, 31, 56, 65]), SIZES, SIZES, st.floats(0.05, 0.95), SEEDS
)
def test_torchvisions_masks_are_its_definition_but_for_float_ties(
    n: int, side: int, height: int, width: int, threshold: float, seed: int
) -> None:
    masks, boxes = head(n, side, height, width, seed)

    counts = paste_rles(masks, boxes, height, width, threshold)

    values = np.array([by_torchvision(m, b, height, width) for m, b in zip(masks, boxes, strict=True)])
    values = values.reshape(-1, height, width)
    wrong = decoded(counts, height, width) != (values > np.float32(threshold))
    assert np.abs(values - threshold)[wrong].max(initial=0) < TIE


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 5), st.sampled_from([1, 2, 7, 14, 28, 30, 31, 56, 65]), SIZES, SIZES, st.floats(0.05, 0.95), SEEDS
)
def test_detectron2s_masks_are_those_of_grid_sample_but_for_float_ties(
    n: int, side: int, height: int, width: int, threshold: float, seed: int
) -> None:
    masks, boxes = head(n, side, height, width, seed)

    counts = paste_rles(masks, boxes, height, width, threshold, whole_pixels=False)

    values = np.array([by_detectron2(m, b, height, width) for m, b in zip(masks, boxes, strict=True)])
    values = values.reshape(-1, height, width)
    wrong = decoded(counts, height, width) != (values >= np.float32(threshold))
    assert np.abs(values - threshold)[wrong].max(initial=0) < TIE


@pytest.mark.parametrize("noise", [False, True])
def test_a_hundred_masks_have_the_strings_of_pycocotools(noise: bool) -> None:
    from oracles.one_thread import functional, torch

    rng = np.random.default_rng(3)
    grown = functional.interpolate(torch.from_numpy(rng.random((1, 100, 5, 5))), (28, 28), mode="bicubic")[0].clamp(
        0, 1
    )
    masks = rng.random((100, 28, 28)).astype(np.float32) if noise else grown.numpy().astype(np.float32)
    _, boxes = head(100, 28, 400, 600, seed=4)

    counts = paste_rles(masks, boxes, 400, 600, whole_pixels=False)

    pasted = [by_detectron2(m, b, 400, 600) >= 0.5 for m, b in zip(masks, boxes, strict=True)]
    expected = [coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"] for mask in pasted]
    assert sum(a == b for a, b in zip(counts, expected, strict=True)) >= 99  # one float tie


@pytest.mark.parametrize("whole_pixels", [True, False])
@pytest.mark.parametrize(
    "box",
    [
        (50, 50, 60, 60), (-60, -60, -50, -50), (5, 50, 9, 60), (-9, 3, -3, 5),
        (1e30, 1e30, 2e30, 2e30), (-2e30, 0, -1e30, 9), (3.4e38, 0, 3.4e38, 3e38), (-3.4e38, -3.4e38, -3e38, -3e38),
        (np.nan, 0, 9, 9), (0, 0, np.nan, np.nan), (np.inf, 0, np.inf, 9),
    ],
)  # fmt: skip
def test_a_box_outside_the_image_or_without_a_place_gives_an_empty_mask(
    box: tuple[float, ...], whole_pixels: bool
) -> None:
    masks, boxes = np.ones((1, 28, 28), np.float32), np.array([box], np.float32)

    counts = paste_rles(masks, boxes, 32, 40, whole_pixels=whole_pixels)

    assert not decoded(counts, 32, 40).any()


@pytest.mark.parametrize("whole_pixels", [True, False])
@pytest.mark.parametrize("box", [(-1e9, -1e9, 1e9, 1e9), (-1e30, -1e30, 1e30, 1e30), (-1e38, -1e38, 1e38, 1e38)])
def test_a_box_of_any_size_covers_the_image(box: tuple[float, ...], whole_pixels: bool) -> None:
    masks, boxes = np.ones((1, 28, 28), np.float32), np.array([box], np.float32)

    counts = paste_rles(masks, boxes, 32, 40, whole_pixels=whole_pixels)

    assert decoded(counts, 32, 40).all()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=4, max_size=4), SIZES, SIZES,
    st.integers(1, 9), st.booleans(), SEEDS,
)  # fmt: skip
def test_any_box_gives_some_mask_of_the_image(
    box: list[float], height: int, width: int, side: int, whole_pixels: bool, seed: int
) -> None:
    masks = np.random.default_rng(seed).random((1, side, side)).astype(np.float32)

    counts = paste_rles(masks, np.array([box], np.float32), height, width, whole_pixels=whole_pixels)

    assert decoded(counts, height, width).shape == (1, height, width)


def test_an_empty_or_inverted_box_has_at_most_the_one_pixel_that_torchvision_gives_it() -> None:
    masks, boxes = np.ones((2, 28, 28), np.float32), np.array([[5, 5, 5, 5], [9, 9, 4, 4]], np.float32)

    assert decoded(paste_rles(masks, boxes, 20, 20), 20, 20).sum(axis=(1, 2)).tolist() == [1, 0]
    assert not decoded(paste_rles(masks, boxes, 20, 20, whole_pixels=False), 20, 20).any()


def test_a_value_of_the_threshold_itself_counts_for_detectron2_alone() -> None:
    masks, boxes = np.full((1, 32, 32), 0.5, np.float32), np.array([[0, 0, 32, 32]], np.float32)

    assert not decoded(paste_rles(masks, boxes, 32, 32), 32, 32).any()
    assert decoded(paste_rles(masks, boxes, 32, 32, whole_pixels=False), 32, 32).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    boxes = np.zeros((2, 4), np.float32)

    for shape in [(2, 28, 27), (3, 28, 28), (2, 0, 0)]:
        with pytest.raises(ValueError, match="have shapes"):
            paste_rles(np.zeros(shape, np.float32), boxes, 32, 32)
    with pytest.raises(ValueError, match="3 dimensions"):
        paste_rles(np.zeros((2, 1, 28, 28), np.float32), boxes, 32, 32)
