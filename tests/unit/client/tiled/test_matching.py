"""Which pieces of neighbouring tiles are one object, and what that object is."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segserve.results.masks import EncodedMask
from segserve.tiled.grid import Grid
from segserve.tiled.merging import Groups, Merged, matches, merge, merged_objects
from segserve.tiled.tile_masks import Piece, TilePatch, crop, encode, encode_intervals, intervals, is_whole, of_bitmap

GRID = Grid(192, 320, 128, 64)


def seen(bitmap: np.ndarray, tile: int, *, number: int = 0, score: float = 0.9, class_id: int = 1) -> Piece | None:
    """Return what a tile shows of an object that is a mask of the whole image."""
    window = GRID[tile].window
    patch = of_bitmap(bitmap[window.slices()])
    if patch is None:
        return None
    moved = TilePatch(patch.top + window.top, patch.left + window.left, patch.bitmap)
    box = moved.window
    return Piece(
        tile=tile,
        number=number,
        class_id=class_id,
        score=score,
        box=(float(box.left), float(box.top), float(box.right), float(box.bottom)),
        patch=moved,
        area=int(moved.bitmap.sum()),
        is_whole=is_whole(moved, GRID[tile], GRID.height, GRID.width),
    )


def disc(y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: GRID.height, : GRID.width]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def merged(*shown: list[Piece]) -> list[Merged]:
    """Return the objects of tiles that show these pieces."""
    by_tile = {
        index: [piece for pieces in shown for piece in pieces if piece.tile == index] for index in range(len(GRID))
    }
    return list(merged_objects(GRID, lambda index: by_tile[index]))


def everywhere(bitmap: np.ndarray, number: int = 0) -> list[Piece]:
    return [piece for tile in GRID if (piece := seen(bitmap, tile.index, number=number)) is not None]


@st.composite
def discs(draw: st.DrawFn) -> list[np.ndarray]:
    """Return masks that do not overlap, anywhere and of any size."""
    taken = np.zeros((GRID.height, GRID.width), bool)
    found = []
    for _ in range(draw(st.integers(1, 8))):
        mask = disc(draw(st.integers(0, 191)), draw(st.integers(0, 319)), draw(st.integers(2, 80))) & ~taken
        if mask.any():
            found.append(mask)
            taken |= mask
    return found


@settings(max_examples=20, deadline=None)
@given(discs(), st.randoms(use_true_random=False))
def test_the_objects_do_not_depend_on_the_order_of_the_pieces(masks: list[np.ndarray], random: object) -> None:
    pieces = [piece for number, mask in enumerate(masks) for piece in everywhere(mask, number)]
    shuffled = pieces.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    first, second = merged(pieces), merged(shuffled)

    def content(objects: list[Merged]) -> set[tuple[object, ...]]:
        return {(one.box, one.score, one.area, one.origin, str(one.rle)) for one in objects}

    assert content(first) == content(second)


@settings(max_examples=20, deadline=None)
@given(discs())
def test_no_pixel_is_lost_and_none_is_invented(masks: list[np.ndarray]) -> None:
    pieces = [piece for number, mask in enumerate(masks) for piece in everywhere(mask, number)]

    found = np.zeros((GRID.height, GRID.width), bool)
    for one in merged(pieces):
        number = one.numbered(1, "")
        found[number.window.slices()] |= number.mask

    assert (found == np.any(masks, axis=0)).all()


def test_an_object_over_a_corner_of_four_tiles_is_one() -> None:
    corner = disc(64, 64, 12)

    (one,) = merged(everywhere(corner))

    assert one.area == corner.sum()
    assert {piece.tile for piece in one.pieces} >= set(GRID.owners(one.piece.patch.window))
    assert len(set(GRID.owners(one.piece.patch.window))) == 4


def test_an_object_larger_than_any_tile_is_one_with_all_its_pixels() -> None:
    strip = np.zeros((GRID.height, GRID.width), bool)
    strip[90:100, 10:310] = True

    (one,) = merged(everywhere(strip))

    assert one.area == 3000
    assert one.box == (10, 90, 310, 100)


def test_an_object_whose_parts_lie_on_both_sides_of_a_tile_s_edge_keeps_both() -> None:
    """As one behind a post: the tile whose edge lies behind the post shows one part, and nothing that cuts it."""
    parts = np.zeros((GRID.height, GRID.width), bool)
    parts[10:30, 150:188] = parts[10:30, 200:250] = True
    right_of_the_gap = seen(parts, 4)
    assert right_of_the_gap is not None
    assert right_of_the_gap.is_whole

    (one,) = merged(everywhere(parts))

    assert one.area == parts.sum()


def test_two_objects_that_touch_stay_two_where_another_tile_runs_them_together() -> None:
    left, right = disc(40, 40, 15), disc(40, 71, 15)
    apart = [seen(left, 0), seen(right, 0, number=1)]
    together = seen(left | right, 1)
    assert together is not None
    assert not together.is_whole

    found = merged([piece for piece in (*apart, together) if piece is not None])

    assert sorted(one.area for one in found) == sorted((left.sum(), right.sum()))


def test_a_fragment_at_the_edge_of_a_tile_goes_into_the_object_that_the_neighbour_shows_whole() -> None:
    whole = disc(40, 130, 25)
    fragment = seen(whole & (np.arange(GRID.width) < 124), 0)
    shown = seen(whole, 1)

    (one,) = merged([piece for piece in (fragment, shown) if piece is not None])

    assert one.area == whole.sum()


def test_what_only_the_farther_tile_claims_to_see_is_dropped() -> None:
    ghost = seen(disc(40, 124, 3), 0)
    assert ghost is not None

    assert merged([ghost]) == []


def test_objects_of_different_classes_are_never_one() -> None:
    mask = disc(64, 64, 12)
    coin, leaf = seen(mask, 0, class_id=1), seen(mask, 1, class_id=2)

    assert len(merged([piece for piece in (coin, leaf) if piece is not None])) == 2


def test_a_small_object_within_a_large_one_stays_where_both_are_whole() -> None:
    outer, inner = disc(64, 70, 20), disc(64, 70, 6)

    found = merged(everywhere(outer, 0), everywhere(inner, 1))

    assert sorted(one.area for one in found) == sorted((inner.sum(), outer.sum()))


def test_the_score_of_a_joined_object_is_the_mean_by_the_pixels_that_each_tile_gives() -> None:
    strip = np.zeros((GRID.height, GRID.width), bool)
    strip[10:20, 0:192] = True
    pieces = [piece for tile, score in ((0, 0.9), (1, 0.6), (2, 0.3)) if (piece := seen(strip, tile, score=score))]

    (one,) = merged(pieces)

    shares = [int(strip[GRID[tile].cell.slices()].sum()) for tile in (0, 1, 2)]
    assert abs(one.score - np.average([0.9, 0.6, 0.3], weights=shares)) < 1e-9


def test_an_object_whole_in_two_tiles_is_as_the_one_shows_it_that_has_it_deeper() -> None:
    left, right = seen(disc(40, 90, 8), 0, score=0.4), seen(disc(40, 90, 9), 1, score=0.8)
    assert left is not None
    assert right is not None

    (one,) = merged([left, right])

    assert (one.score, one.area) == (0.8, disc(40, 90, 9).sum())


def test_a_group_that_is_taken_leaves_nothing_behind() -> None:
    pieces = everywhere(disc(64, 64, 12))
    groups = Groups()
    groups.add(pieces)
    band = GRID[0].window.intersection(GRID[1].window)
    groups.join(matches(pieces[:1], pieces[1:2], band))

    for group in groups.groups():
        groups.take(group)

    assert groups.groups() == []


def test_a_piece_without_pixels_in_its_own_cell_still_counts_beside_others() -> None:
    pieces = everywhere(disc(64, 62, 4))

    one = merge(pieces, GRID)

    assert one is not None
    assert one.area == disc(64, 62, 4).sum()


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_masks_are_cropped_and_encoded_as_pycocotools_does(height: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    bitmap = np.array(bits).reshape(height, width)
    rle = coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))

    patch = crop(EncodedMask(rle["counts"], height, width))

    assert encode(bitmap)["counts"] == rle["counts"].decode()
    assert encode_intervals(intervals(bitmap), height, width)["counts"] == rle["counts"].decode()
    if not bitmap.any():
        assert patch is None
        return
    expected = of_bitmap(bitmap)
    assert patch is not None
    assert expected is not None
    assert (patch.top, patch.left) == (expected.top, expected.left)
    assert (patch.bitmap == expected.bitmap).all()
