"""COCO run-length encoding against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segserve_builder.kernels import rle, rle_reader
from segserve_builder.kernels.rle import MaskWindow


def drawn(height: int, width: int, density: float, seed: int) -> np.ndarray:
    """A mask of noise, blocky so that it has long runs too."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 3 + 1, width // 3 + 1)) < density
    fine = rng.random((height, width)) < density
    picked = np.where(rng.random() < 0.5, coarse.repeat(3, 0).repeat(3, 1)[:height, :width], fine)
    return picked.astype(np.uint8)


def by_pycocotools(mask: np.ndarray) -> bytes:
    return coco.encode(np.asfortranarray(mask))["counts"]


SIZES = st.integers(1, 150)
DENSITIES = st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.95, 1.0])
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, DENSITIES, SEEDS)
def test_counts_are_those_of_pycocotools(height: int, width: int, density: float, seed: int) -> None:
    mask = drawn(height, width, density, seed)

    assert rle.encode_bitmap(mask) == by_pycocotools(mask)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, DENSITIES, SEEDS)
def test_decoding_gives_back_what_pycocotools_encoded(height: int, width: int, density: float, seed: int) -> None:
    mask = drawn(height, width, density, seed)

    assert np.array_equal(rle_reader.decode_bitmap(by_pycocotools(mask), height, width), mask)


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES, SIZES, DENSITIES, SEEDS)
def test_a_window_encodes_as_the_whole_mask_does(
    data: st.DataObject, height: int, width: int, density: float, seed: int
) -> None:
    top, left = data.draw(st.integers(0, 90)), data.draw(st.integers(0, 90))
    below, beside = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
    bitmap = drawn(height, width, density, seed)
    mask = np.pad(bitmap, ((top, below), (left, beside)))

    assert rle.encode(MaskWindow(bitmap, top, left), *mask.shape) == by_pycocotools(mask)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.sampled_from([0.0, 0.001, 0.02, 0.5, 1.0]), SEEDS, st.integers(0, 5))
def test_a_decoded_window_is_the_bounding_box_and_its_margin(
    height: int, width: int, density: float, seed: int, margin: int
) -> None:
    mask = drawn(height, width, density, seed)
    left, top, w, h = coco.toBbox({"size": [height, width], "counts": by_pycocotools(mask)}).astype(int)

    window = rle_reader.decode(by_pycocotools(mask), height, width, margin)

    if not mask.any():
        assert window.bitmap.size == 0
        return
    rows = slice(max(top - margin, 0), min(top + h + margin, height))
    columns = slice(max(left - margin, 0), min(left + w + margin, width))
    assert (window.top, window.left) == (rows.start, columns.start)
    assert np.array_equal(window.bitmap, mask[rows, columns])


@pytest.mark.parametrize("size", [(64, 64), (65, 129), (128, 63), (1, 200), (200, 1), (300, 70)])
@pytest.mark.parametrize("pattern", ["checkerboard", "stripes", "noise", "full"])
def test_masks_without_long_runs_have_the_counts_of_pycocotools_too(size: tuple[int, int], pattern: str) -> None:
    y, x = np.indices(size)
    noise = np.random.default_rng(0).integers(0, 2, size)
    mask = {"checkerboard": (x + y) % 2, "stripes": y % 2, "noise": noise, "full": np.ones(size)}[pattern].astype(
        np.uint8
    )

    assert rle.encode_bitmap(mask) == by_pycocotools(mask)


def test_an_empty_window_is_an_empty_mask() -> None:
    empty = MaskWindow(np.zeros((0, 0), np.uint8), 0, 0)

    assert rle.encode(empty, 5, 7) == by_pycocotools(np.zeros((5, 7), np.uint8))


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (7, 0), (0, 8)])
def test_a_window_that_leaves_the_mask_is_refused(top: int, left: int) -> None:
    with pytest.raises(ValueError, match="leaves the 10 x 10 mask"):
        rle.encode(MaskWindow(np.ones((4, 3), np.uint8), top, left), 10, 10)


@pytest.mark.parametrize("counts", [b"", b"5", b"o", b"\xff\xff", b"0" * 3, b"T3O"])
def test_counts_of_another_size_are_refused(counts: bytes) -> None:
    with pytest.raises(ValueError, match="a 10 x 10 mask has 100"):
        rle_reader.decode(counts, 10, 10)
    with pytest.raises(ValueError, match="a 10 x 10 mask has 100"):
        rle_reader.decode_bitmap(counts, 10, 10)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_refused_or_decode_to_a_mask(counts: bytes) -> None:
    try:
        window = rle_reader.decode(counts, 9, 8)
    except ValueError:
        return
    assert window.bitmap.shape[0] <= 9
    assert window.bitmap.shape[1] <= 8
