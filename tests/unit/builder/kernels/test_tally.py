"""Sums by label against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from segserve_builder.kernels.tally import tally


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_are_summed_and_counted_by_label(dtype: type) -> None:
    rng = np.random.default_rng(0)
    labels, values = rng.integers(0, 5, (30, 41)).astype(dtype), rng.random((30, 41)).astype(np.float32)

    sums, areas = tally(labels, values, 7)

    assert sums == pytest.approx(np.bincount(labels.ravel(), values.ravel(), minlength=7))
    assert areas.tolist() == np.bincount(labels.ravel(), minlength=7).tolist()


def test_labels_beyond_the_number_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 3"):
        tally(np.full((2, 2), 3, np.uint8), np.zeros((2, 2), np.float32), 3)
