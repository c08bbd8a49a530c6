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
from segserve_common.rle import RunLengths, run_lengths

bitmaps = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(bitmaps)
def test_counts_of_any_mask_pass_the_check(bitmap: np.ndarray) -> None:
    counts = coco.encode(np.asfortranarray(bitmap, np.uint8))["counts"]

    runs = run_lengths(counts, *bitmap.shape)

    decoded = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(bitmap.shape[::-1]).T
    np.testing.assert_array_equal(decoded, bitmap)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)))
def test_areas_and_boxes_of_many_masks_are_those_of_pycocotools(masks: np.ndarray) -> None:
    rles = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]

    runs = RunLengths.read([rle["counts"] for rle in rles], *masks.shape[1:])

    x, y, width, height = coco.toBbox(rles).T
    np.testing.assert_array_equal(runs.areas(), coco.area(rles))
    np.testing.assert_array_equal(runs.boxes(), np.stack([x, y, x + width, y + height], 1))


def test_areas_and_boxes_of_large_masks_are_those_of_pycocotools() -> None:
    """Long runs, whose numbers have up to five digits, beside short ones, and masks that are empty, full or a pixel."""
    height, width = 1400, 1900
    rows, columns = np.ogrid[:height, :width]
    pixel = np.zeros((height, width), bool)
    pixel[height - 1, width - 1] = True
    masks = [
        pixel,
        np.zeros((height, width), bool),
        (rows - 700) ** 2 + (columns - 900) ** 2 < 600**2,
        np.ones((height, width), bool),
        np.random.default_rng(0).random((height, width)) < 0.5,
        (rows > 3) & (columns > 1000) & (columns % 2 == 0),
    ]
    rles = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]

    runs = RunLengths.read([rle["counts"] for rle in rles], height, width)

    x, y, widths, heights = coco.toBbox(rles).T
    np.testing.assert_array_equal(runs.areas(), [mask.sum() for mask in masks])
    np.testing.assert_array_equal(runs.boxes(), np.stack([x, y, x + widths, y + heights], 1))


def test_no_masks_have_no_areas_and_no_boxes() -> None:
    runs = RunLengths.read([], 0, 0)

    assert (runs.areas().shape, runs.boxes().shape) == ((0,), (0, 4))


@pytest.mark.parametrize(
    ("numbers", "box"),
    [
        ([0, 0, 9], (0, 0, 0, 0)),
        ([0, 0, 4, 2, 3], (1, 1, 2, 3)),
        ([0, 3, 0, 3, 3], (0, 0, 2, 3)),
        ([9, 0], (0, 0, 0, 0)),
        ([0, 9], (0, 0, 3, 3)),
    ],
)
def test_empty_runs_do_not_widen_a_box(numbers: list[int], box: tuple[int, ...]) -> None:
    (rle,) = coco.frPyObjects([{"size": [3, 3], "counts": numbers}], 3, 3)

    boxes = RunLengths.read([rle["counts"]] * 2, 3, 3).boxes()

    assert boxes.tolist() == [list(box)] * 2


@given(st.lists(st.binary(max_size=6) | st.lists(st.integers(48, 111), max_size=8).map(bytes), min_size=1, max_size=4))
def test_masks_are_refused_together_as_each_by_itself(counts: list[bytes]) -> None:
    """What is read together has the runs, or the error, of one of the masks read alone."""
    alone: list[list[int]] = []
    errors = []
    for each in counts:
        try:
            alone.append(run_lengths(each, 2, 3).tolist())
        except ProtocolError as error:
            errors.append(str(error))
    if errors:
        with pytest.raises(ProtocolError) as raised:
            RunLengths.read(counts, 2, 3)
        assert str(raised.value) in errors
        return
    together = RunLengths.read(counts, 2, 3)
    assert together.areas().tolist() == [sum(runs[1::2]) for runs in alone]


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
