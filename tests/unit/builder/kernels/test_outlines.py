"""Outlines as corners of pixels, and with fewer points."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.imaging.masks import outlines, polygons_json
from segserve_builder.kernels.outlines import ring_json, simplified
from segserve_builder.kernels.rle import MaskWindow

SEEDS = st.integers(0, 2**32 - 1)
TOLERANCES = st.sampled_from([0.1, 0.5, 1.0, 2.5, 10.0, 100.0])


def window(seed: int) -> MaskWindow:
    rng = np.random.default_rng(seed)
    height, width, block = rng.integers(1, 20), rng.integers(1, 20), rng.integers(1, 5)
    coarse = rng.random((height, width)) < rng.choice([0.1, 0.4, 0.6, 0.9])
    return MaskWindow(coarse.repeat(block, 0).repeat(block, 1).astype(np.uint8), 3, 4)


def farthest(ring: np.ndarray, fewer: np.ndarray) -> float:
    """The greatest distance of a ring's points from a polygon's sides."""
    start, side = fewer.astype(float), np.roll(fewer, -1, axis=0).astype(float) - fewer
    away = ring[:, None] - start
    part = np.clip((away * side).sum(axis=2) / (side**2).sum(axis=1), 0, 1)
    return float(np.sqrt(((away - part[..., None] * side) ** 2).sum(axis=2)).min(axis=1).max())


def crossings(ring: np.ndarray) -> int:
    """The number of pairs of sides that cross, counted twice."""
    a, b = ring.astype(np.int64), np.roll(ring, -1, axis=0).astype(np.int64)

    def turn(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        u, v = q - p, r - p
        return np.sign(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    p, q, r, s = a[:, None], b[:, None], a[None], b[None]
    return int(np.count_nonzero((turn(p, q, r) * turn(p, q, s) < 0) & (turn(r, s, p) * turn(r, s, q) < 0)))


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_every_part_that_lies_in_no_hole_has_an_outline_that_turns_at_every_point(seed: int) -> None:
    from scipy import ndimage

    found = window(seed)
    _, outer = ndimage.label(ndimage.binary_fill_holes(found.bitmap), np.ones((3, 3)))

    rings = outlines(found)

    assert len(rings) == outer
    for ring in rings:
        arriving, leaving = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
        assert ((arriving == 0).sum(axis=1) == 1).all()
        assert ((arriving == 0) != (leaving == 0)).all()


@settings(max_examples=120, deadline=None)
@given(SEEDS, TOLERANCES)
def test_every_point_of_an_outline_is_within_the_tolerance_of_the_simplified_one(seed: int, tolerance: float) -> None:
    for ring in outlines(window(seed)):
        fewer = simplified(ring, tolerance)

        assert 3 <= len(fewer) <= len(ring)
        assert (fewer != np.roll(fewer, 1, axis=0)).any(axis=1).all()
        assert farthest(ring, fewer) <= tolerance + 1e-9
        assert {tuple(point) for point in fewer.tolist()} <= {tuple(point) for point in ring.tolist()}


@settings(max_examples=120, deadline=None)
@given(SEEDS, TOLERANCES)
def test_the_sides_of_a_simplified_outline_do_not_cross(seed: int, tolerance: float) -> None:
    for ring in outlines(window(seed)):
        assert crossings(simplified(ring, tolerance)) == 0


def test_a_disc_needs_few_points() -> None:
    y, x = np.mgrid[-50:51, -50:51]
    (ring,) = outlines(MaskWindow((x * x + y * y <= 2500).astype(np.uint8), 0, 0))

    assert len(ring) > 150
    assert len(simplified(ring, 1.0)) < 40


def test_a_line_of_pixels_stays_a_polygon() -> None:
    (ring,) = outlines(MaskWindow(np.ones((1, 60), np.uint8), 0, 0))

    assert len(simplified(ring, 50.0)) == 3


def test_a_polygon_needs_three_points() -> None:
    with pytest.raises(ValueError, match="2 points; at least 3"):
        simplified(np.zeros((2, 2), np.int32), 1.0)


@given(st.lists(st.tuples(*[st.integers(0, 2**31 - 1)] * 2), max_size=20))
def test_a_ring_is_written_as_json_writes_it(points: list[tuple[int, int]]) -> None:
    ring = np.array(points, np.int32).reshape(-1, 2)

    assert ring_json(ring) == json.dumps(ring.ravel().tolist(), separators=(",", ":")).encode()


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from([None, 1.0]))
def test_the_polygons_of_a_mask_are_json_of_its_outlines(seed: int, tolerance: float | None) -> None:
    found = window(seed)
    rings = [ring if tolerance is None else simplified(ring, tolerance) for ring in outlines(found)]

    assert json.loads(polygons_json(found, tolerance)) == [ring.ravel().tolist() for ring in rings]


@pytest.mark.parametrize("bitmap", [np.zeros((0, 0), np.uint8), np.zeros((4, 5), np.uint8)], ids=["nowhere", "nothing"])
def test_an_empty_mask_has_no_polygons(bitmap: np.ndarray) -> None:
    assert polygons_json(MaskWindow(bitmap, 0, 0)) == b"[]"


def test_read_only_and_strided_bitmaps_have_the_same_outlines() -> None:
    bitmap = window(8).bitmap
    strided = bitmap.repeat(2, axis=1)[:, ::2]
    strided.setflags(write=False)

    assert polygons_json(MaskWindow(strided, 1, 2)) == polygons_json(MaskWindow(bitmap, 1, 2))
