"""What is left of a label map below segments, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.fusion import fill_free, free_areas


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 20), st.integers(0, 20), st.integers(1, 300), st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_what_is_free_is_counted_and_filled_and_the_rest_stays(
    height: int, width: int, number: int, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, min(number, 256), (height, width)).astype(dtype)
    ids = rng.integers(0, 3, (height, width)).astype(np.uint16)
    names = rng.integers(0, 65_536, number).astype(np.uint16)
    free = ids == 0
    filled = np.where(free, names[labels], ids)

    areas = free_areas(labels, ids, number)
    fill_free(labels, names, ids)

    np.testing.assert_array_equal(areas, np.bincount(labels[free], minlength=number))
    np.testing.assert_array_equal(ids, filled)


def test_what_does_not_fit_is_refused() -> None:
    labels, ids = np.full((2, 3), 4, np.uint8), np.zeros((2, 3), np.uint16)

    with pytest.raises(ValueError, match=r"up to 4, .* 4 labels"):
        free_areas(labels, ids, 4)
    with pytest.raises(ValueError, match=r"up to 4, .* 4 labels"):
        fill_free(labels, np.zeros(4, np.uint16), ids)
    with pytest.raises(ValueError, match=r"labels \(2, 3\) .* ids \(3, 2\)"):
        free_areas(labels, np.zeros((3, 2), np.uint16), 5)
