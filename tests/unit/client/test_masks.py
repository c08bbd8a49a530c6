"""Masks come out the same whatever encoding they came in, and pycocotools agrees."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from segserve.results.masks import EncodedMask, largest_first, runs_of
from segserve_common.errors import ProtocolError
from segserve_common.mask_encodings import read_png

from .conftest import decoded, png, rle_counts

bitmaps = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def holeless(bitmap: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(bitmap, np.ones((3, 3))))


@given(bitmaps)
def test_rle_png_and_raw_give_the_same_bitmap_rle_and_area(bitmap: np.ndarray) -> None:
    counts = rle_counts(bitmap)
    for data in (counts, png(bitmap.astype(np.uint8) * 255), bitmap.astype(np.uint8).tobytes()):
        mask = EncodedMask(data, *bitmap.shape)
        np.testing.assert_array_equal(mask.bitmap, bitmap)
        assert mask.rle == {"size": list(bitmap.shape), "counts": counts}
        assert mask.area == bitmap.sum()


@given(bitmaps)
def test_a_patch_is_the_mask_in_its_own_rectangle_whatever_the_encoding(bitmap: np.ndarray) -> None:
    for data in (rle_counts(bitmap), png(bitmap.astype(np.uint8)), bitmap.astype(np.uint8).tobytes()):
        mask = EncodedMask(data, *bitmap.shape)
        patch = mask.patch()
        assert mask.box == patch.box
        again = np.zeros_like(bitmap)
        again[patch.window] = patch.pixels
        np.testing.assert_array_equal(again, bitmap)
        assert not bitmap.any() or all(side.any() for side in (*patch.pixels[[0, -1]], *patch.pixels.T[[0, -1]]))


@given(st.lists(hnp.arrays(np.bool_, (7, 9)), min_size=1, max_size=6))
def test_masks_that_are_read_together_are_the_same_as_one_by_one(bitmaps: list[np.ndarray]) -> None:
    data = [
        (rle_counts(each), png(each.astype(np.uint8)), each.astype(np.uint8).tobytes())[number % 3]
        for number, each in enumerate(bitmaps)
    ]
    together, alone = ([EncodedMask(each, 7, 9) for each in data] for _ in range(2))

    assert runs_of(together).areas().tolist() == [mask.area for mask in alone]
    assert [(mask.rle, mask.area, mask.box) for mask in together] == [(mask.rle, mask.area, mask.box) for mask in alone]
    by_area = sorted(enumerate(alone), key=lambda item: -item[1].area)
    assert [number for number, _ in largest_first(dict(enumerate(together)))] == [number for number, _ in by_area]


def test_a_wrong_mask_among_many_leaves_none_of_them_unchecked() -> None:
    masks = [EncodedMask(data, 4, 4) for data in (rle_counts(np.eye(4, dtype=bool)), b"PPPP0")]

    for _ in range(2):
        with pytest.raises(ProtocolError):
            runs_of(masks)
    with pytest.raises(ProtocolError):
        _ = masks[1].rle


def test_a_patch_decodes_only_the_masks_own_columns() -> None:
    side = 30_000
    mask = EncodedMask(counts_of([side * 100 + 5, 3, side * side - side * 100 - 8]), side, side)

    assert mask.patch().box == (100, 5, 101, 8)


def counts_of(runs: list[int]) -> bytes:
    return bytes(coco.frPyObjects([{"size": [30_000, 30_000], "counts": runs}], 30_000, 30_000)[0]["counts"])


@given(bitmaps)
def test_tracing_and_filling_a_mask_without_holes_gives_it_back(bitmap: np.ndarray) -> None:
    filled = holeless(bitmap)
    again = np.zeros_like(filled)
    for polygon in EncodedMask.of(filled).polygons:
        again |= inside(polygon, filled.shape)
    np.testing.assert_array_equal(again, filled)


@given(bitmaps)
def test_each_outline_is_one_four_connected_part(bitmap: np.ndarray) -> None:
    from scipy import ndimage

    assert len(EncodedMask.of(bitmap).polygons) == ndimage.label(bitmap)[1]


def inside(polygon: list[float], shape: tuple[int, int]) -> np.ndarray:
    """Return which pixel centres lie within, by counting the vertical edges to their left."""
    winding = np.zeros((shape[0], shape[1] + 1), int)
    corners = np.array(polygon, int).reshape(-1, 2)
    for (x, y), (_, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        winding[min(y, next_y) : max(y, next_y), x] += np.sign(next_y - y)
    return np.cumsum(winding, axis=1)[:, :-1] != 0


def test_a_square_is_traced_around_its_pixels_clockwise() -> None:
    bitmap = np.zeros((6, 8), bool)
    bitmap[1:4, 2:5] = True
    assert EncodedMask.of(bitmap).polygons == [[2, 1, 5, 1, 5, 4, 2, 4]]


def test_polygons_of_the_server_are_kept_and_filled_as_pycocotools_fills_them() -> None:
    polygons = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0], [35.0, 2.0, 39.0, 2.0, 37.0, 9.0]]
    mask = EncodedMask(json.dumps(polygons).encode(), 40, 50)

    assert mask.polygons == polygons
    expected = decoded(coco.merge(coco.frPyObjects(polygons, 40, 50)))
    np.testing.assert_array_equal(mask.bitmap, expected.astype(bool))


@pytest.mark.parametrize("data", [b"[]", b"[[]]", b"[[1,2,3,4]]"])
def test_polygons_that_enclose_nothing_are_an_empty_mask(data: bytes) -> None:
    assert EncodedMask(data, 4, 5).area == 0


@given(st.binary(max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_any_bytes_are_a_mask_or_a_protocol_error(data: bytes, height: int, width: int) -> None:
    mask = EncodedMask(data, height, width)
    try:
        bitmap, polygons = mask.bitmap, mask.polygons
    except ProtocolError:
        return
    assert bitmap.shape == (height, width)
    assert all(len(polygon) % 2 == 0 for polygon in polygons)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"5", id="runs that end early: pycocotools would show its memory"),
        pytest.param(b"PPPP0", id="runs that end late"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="a PNG that is cut"),
        pytest.param(b"[1]", id="a polygon that is a number"),
        pytest.param(b'[["a",1]]', id="a polygon with a text"),
        pytest.param(b"[[1]]", id="a polygon with half a point"),
        pytest.param(b"[[0,0,2e9,0,0,2e9]]", id="a polygon whose edge would fill all memory"),
        pytest.param(b"[[0,0,NaN,0,0,2]]", id="a polygon that is nowhere"),
        pytest.param(b"[" * 9999 + b"]", id="JSON nested too deep"),
    ],
)
def test_what_is_no_mask_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        _ = EncodedMask(data, 4, 4).bitmap


def test_a_png_of_another_size_or_with_colours_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="5 x 4"):
        read_png(png(np.zeros((4, 5), np.uint8)), 4, 4)
    with pytest.raises(ProtocolError, match="RGB"):
        read_png(png(np.zeros((4, 4, 3), np.uint8)), 4, 4)
