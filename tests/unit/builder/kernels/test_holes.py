"""Filling of holes against scipy's binary_fill_holes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.holes import fill_holes

CONNECTIVITIES: Any = st.sampled_from([4, 8])


def by_scipy(
    labels: np.ndarray, connectivity: int, max_area: int | None, everything: bool, classes: set[int] | None
) -> np.ndarray:
    """Each hole of each class, alone: the smallest has its pixels of class 0, or the largest has all."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 4 else 1)
    filled, size = labels.copy(), np.zeros(labels.shape, np.int64)
    for value in np.unique(labels[labels > 0]).tolist():
        if classes is not None and value not in classes:
            continue
        mask = labels == value
        holes, number = ndimage.label(ndimage.binary_fill_holes(mask, structure) & ~mask, structure)
        for hole in range(1, number + 1):
            here = holes == hole
            area = np.count_nonzero(here)
            if max_area is not None and area > max_area:
                continue
            better = here & ((area > size) if everything else ((size == 0) | (area < size)))
            size[better] = area
            filled[better if everything else better & (labels == 0)] = value
    return filled


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 150),
    st.integers(2, 5),
    st.sampled_from([np.uint8, np.uint16]),
    CONNECTIVITIES,
    st.sampled_from([None, 1, 9, 2**40]),
    st.booleans(),
    st.sampled_from([None, {1}, {2, 3}]),
    st.integers(0, 2**32 - 1),
)
def test_the_holes_that_are_filled_are_those_of_scipy(
    height: int,
    width: int,
    values: int,
    dtype: type,
    connectivity: Literal[4, 8],
    max_area: int | None,
    everything: bool,
    classes: set[int] | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 5))
    coarse = rng.integers(0, values, (height // block + 1, width // block + 1))
    labels = coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(dtype)
    before = labels.copy()

    filled = fill_holes(labels, connectivity, max_area, everything, classes)

    assert np.array_equal(filled, by_scipy(labels, connectivity, max_area, everything, classes))
    assert filled.dtype == dtype
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_mask_is_filled_as_scipy_fills_it(connectivity: Literal[4, 8]) -> None:
    from scipy import ndimage

    mask = (np.random.default_rng(5).random((300, 700)) < 0.55).astype(np.uint8)
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 4 else 1)

    assert np.array_equal(fill_holes(mask, connectivity), ndimage.binary_fill_holes(mask, structure))


def nested() -> np.ndarray:
    """Class 3 within it class 2, each a ring with class 0 inside."""
    labels = np.zeros((11, 11), np.uint8)
    labels[1:10, 1:10], labels[2:9, 2:9] = 3, 0
    labels[4:7, 4:7], labels[5, 5] = 2, 0
    return labels


def test_the_smallest_hole_has_the_background_in_it() -> None:
    filled = fill_holes(nested(), 4)

    assert (filled[5, 5], filled[4, 4], filled[3, 3], filled[0, 0]) == (2, 2, 3, 0)


def test_the_largest_hole_has_all_that_is_in_it() -> None:
    filled = fill_holes(nested(), 4, everything=True)

    assert (filled[1:10, 1:10] == 3).all()
    assert filled.sum() == 3 * 81


def test_labels_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="float32; uint8 and uint16 are allowed"):
        fill_holes(np.zeros((3, 3), np.float32), 4)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (2, 2)])
def test_a_label_map_too_small_for_a_hole_stays_as_it_is(shape: tuple[int, int]) -> None:
    assert np.array_equal(fill_holes(np.ones(shape, np.uint8), 8), np.ones(shape, np.uint8))
