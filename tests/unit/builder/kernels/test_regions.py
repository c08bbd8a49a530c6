"""Removal of small regions against scipy's connected components."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segserve_builder.kernels.regions import drop_small


def by_scipy(labels: np.ndarray, min_area: int, connectivity: int) -> np.ndarray:
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    cleaned = labels.copy()
    for value in np.unique(labels[labels > 0]):
        parts, _ = ndimage.label(labels == value, structure)
        small = np.bincount(parts.ravel()) < min_area
        small[0] = False
        cleaned[small[parts]] = 0
    return cleaned


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.sampled_from([2, 3, 5]),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 30),
    st.sampled_from([4, 8]),
    st.integers(0, 2**32 - 1),
)
def test_the_regions_that_stay_are_those_of_scipy(
    height: int, width: int, values: int, dtype: type, min_area: int, connectivity: Literal[4, 8], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 6))
    coarse = rng.integers(0, values, (height // block + 1, width // block + 1))
    labels = coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(dtype)
    before = labels.copy()

    cleaned = drop_small(labels, min_area, connectivity)

    assert np.array_equal(cleaned, by_scipy(labels, min_area, connectivity))
    assert cleaned.dtype == dtype
    assert np.array_equal(labels, before)


def test_labels_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="int64; uint8 and uint16 are allowed"):
        drop_small(np.zeros((3, 3), np.int64), 1, 4)


def test_an_empty_label_map_stays_empty() -> None:
    assert drop_small(np.zeros((0, 5), np.uint8), 1, 4).shape == (0, 5)
