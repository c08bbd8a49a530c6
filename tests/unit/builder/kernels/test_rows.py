"""The best class of each row against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.rows import best_of_rows


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_class_and_product_are_those_of_numpy(n: int, number: int, after: int, tied: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((n, 5 + number + after), dtype=np.float32)
    if tied:
        rows = np.round(rows * 3) / np.float32(3)
    products = rows[:, 5 : 5 + number] * rows[:, 4:5]

    label, score = best_of_rows(rows, 4, 5, 5 + number)

    assert np.array_equal(label, products.argmax(axis=1) if n else [])
    assert np.array_equal(score, products.max(axis=1, initial=0))


@pytest.mark.parametrize(("weight", "first", "last"), [(6, 1, 3), (0, 3, 3), (0, 2, 7), (-1, 1, 3)])
def test_columns_that_are_not_there_are_refused(weight: int, first: int, last: int) -> None:
    with pytest.raises(ValueError, match="not all within 6"):
        best_of_rows(np.zeros((2, 6), np.float32), weight, first, last)
