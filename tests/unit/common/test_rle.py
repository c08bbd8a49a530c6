"""Run lengths of masks from strangers are checked before pycocotools sees them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from segserve_common.errors import ProtocolError
from segserve_common.rle import run_lengths

bitmaps = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(bitmaps)
def test_counts_of_any_mask_pass_the_check(bitmap: np.ndarray) -> None:
    counts = coco.encode(np.asfortranarray(bitmap, np.uint8))["counts"]

    runs = run_lengths(counts, *bitmap.shape)

    decoded = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(bitmap.shape[::-1]).T
    np.testing.assert_array_equal(decoded, bitmap)


@given(st.lists(st.integers(48, 111), max_size=10).map(bytes), st.integers(1, 9), st.integers(1, 9))
def test_counts_that_pass_the_check_are_the_ones_pycocotools_writes(counts: bytes, height: int, width: int) -> None:
    try:
        run_lengths(counts, height, width)
    except ProtocolError:
        return
    rle = {"size": [height, width], "counts": counts}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools warns on numpy 2
        bitmap = np.asarray(coco.decode(rle))
    assert set(np.unique(bitmap)) <= {0, 1}
    assert coco.area(rle) == bitmap.sum()


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (b"", "not COCO RLE counts"),
        (b"\x00", "not COCO RLE counts"),
        (b"oooooo", "end within a number"),
        (b"PPPPPPPPPPPP0", "end within a number"),
        (b"5", "cover 5 pixels, but the image is 4 x 4"),
        (b"PPPP0", "but the image is 4 x 4"),
    ],
)
def test_counts_that_are_no_mask_of_that_size_are_refused(counts: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        run_lengths(counts, 4, 4)
