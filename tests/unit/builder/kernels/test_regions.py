"""Removal of regions against scipy's connected components."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.regions import drop_small, keep_largest, present_labels

SEEDS = st.integers(0, 2**32 - 1)
SIDES = (st.integers(1, 40), st.integers(1, 200))
TYPES = st.sampled_from([np.uint8, np.uint16])
CONNECTIVITIES: Any = st.sampled_from([4, 8])
CLASSES = st.sampled_from([None, {1}, {2, 3}, {0, 1, 4000}])


def regions(labels: np.ndarray, value: int, connectivity: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.label(labels == value, ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2))[0]


def wanted(labels: np.ndarray, classes: set[int] | None) -> list[int]:
    return [value for value in np.unique(labels[labels > 0]).tolist() if classes is None or value in classes]


def drop_by_scipy(labels: np.ndarray, min_area: int, connectivity: int, classes: set[int] | None) -> np.ndarray:
    cleaned = labels.copy()
    for value in wanted(labels, classes):
        parts = regions(labels, value, connectivity)
        small = np.bincount(parts.ravel()) < min_area
        small[0] = False
        cleaned[small[parts]] = 0
    return cleaned


def largest_by_scipy(labels: np.ndarray, connectivity: int, classes: set[int] | None) -> np.ndarray:
    cleaned = labels.copy()
    for value in wanted(labels, classes):
        parts = regions(labels, value, connectivity)
        areas = np.bincount(parts.ravel())
        areas[0] = 0
        cleaned[(parts > 0) & (parts != areas.argmax())] = 0  # scipy numbers regions by their first pixels
    return cleaned


def blocks(height: int, width: int, values: int, dtype: type, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 6))
    coarse = rng.integers(0, values, (height // block + 1, width // block + 1))
    return coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(dtype)


@settings(max_examples=300, deadline=None)
@given(*SIDES, st.sampled_from([2, 3, 5]), TYPES, st.integers(0, 30), CONNECTIVITIES, CLASSES, SEEDS)
def test_the_regions_that_stay_are_those_of_scipy(
    height: int,
    width: int,
    values: int,
    dtype: type,
    min_area: int,
    connectivity: Literal[4, 8],
    classes: set[int] | None,
    seed: int,
) -> None:
    labels = blocks(height, width, values, dtype, seed)
    before = labels.copy()

    cleaned = drop_small(labels, min_area, connectivity, classes)

    assert np.array_equal(cleaned, drop_by_scipy(labels, min_area, connectivity, classes))
    assert cleaned.dtype == dtype
    assert np.array_equal(labels, before)


@settings(max_examples=200, deadline=None)
@given(*SIDES, st.sampled_from([2, 3, 5]), TYPES, CONNECTIVITIES, CLASSES, SEEDS)
def test_the_region_that_stays_of_each_class_is_the_largest_of_scipy(
    height: int,
    width: int,
    values: int,
    dtype: type,
    connectivity: Literal[4, 8],
    classes: set[int] | None,
    seed: int,
) -> None:
    labels = blocks(height, width, values, dtype, seed)
    before = labels.copy()

    cleaned = keep_largest(labels, connectivity, classes)

    assert np.array_equal(cleaned, largest_by_scipy(labels, connectivity, classes))
    assert np.array_equal(labels, before)


def test_of_equally_large_regions_the_first_row_by_row_stays() -> None:
    labels = np.array([[0, 0, 0, 2, 2], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [2, 2, 0, 0, 0]], np.uint8)

    kept = keep_largest(labels, 4)

    assert kept.tolist() == [[0, 0, 0, 2, 2], [1, 1, 0, 0, 0], [0] * 5, [0] * 5]


def test_a_spiral_and_a_comb_are_one_region_each() -> None:
    comb = np.zeros((301, 301), np.uint8)
    comb[:, ::2] = 1
    comb[-1] = 1
    spiral = np.zeros((120, 120), np.uint8)
    top, left, bottom, right = 0, 0, 119, 119
    while bottom - top > 3:
        spiral[top, left : right + 1], spiral[top : bottom + 1, right] = 1, 1
        spiral[bottom, left : right + 1], spiral[top + 2 : bottom + 1, left] = 1, 1
        spiral[top + 2, left : left + 3] = 1
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    for mask in (comb, spiral, comb[::-1], spiral.T):
        assert np.array_equal(drop_small(mask, int(mask.sum()), 4), mask)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_noise_of_wide_rows_is_cleaned_as_scipy_cleans_it(connectivity: Literal[4, 8]) -> None:
    labels = (np.random.default_rng(4).random((257, 1031)) < 0.5).astype(np.uint8)

    assert np.array_equal(drop_small(labels, 20, connectivity), drop_by_scipy(labels, 20, connectivity, None))
    assert np.array_equal(keep_largest(labels, connectivity), largest_by_scipy(labels, connectivity, None))


@given(*SIDES, st.sampled_from([1, 2, 300, 65536]), TYPES, SEEDS)
def test_the_labels_that_are_present_are_those_of_numpy(
    height: int, width: int, values: int, dtype: type, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, values, (height, width)).astype(dtype)

    assert present_labels(labels) == np.unique(labels[labels > 0]).tolist()


def test_labels_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="int64; uint8 and uint16 are allowed"):
        drop_small(np.zeros((3, 3), np.int64), 1, 4)
