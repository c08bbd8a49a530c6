"""Streaming merge: rows of tiles from top to bottom, each object emitted once no further tile can add to it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from segserve.tiled.grid import Grid
from segserve.tiled.matching import SAME, Groups, Match, matches
from segserve.tiled.merging import Merged, merge
from segserve.tiled.tile_masks import Piece


def merged_objects(
    grid: Grid, pieces_of: Callable[[int], Sequence[Piece]], *, at_least: float = SAME, by_cells: bool = False
) -> Iterator[Merged]:
    """Yield the objects of an image from the pieces of its tiles, from top to bottom.

    `pieces_of` is called once per tile with its index. Only pieces that a later tile can overlap are held. Pieces that
    agree by at least `at_least` (see `matching.strength`) are one object.
    """
    groups = Groups()
    around: dict[int, list[Piece]] = {}
    for row in range(grid.rows):
        found: list[Match] = []
        for tile in grid.row(row):
            pieces = list(pieces_of(tile.index))
            groups.add(pieces)
            for index, others in around.items():
                band = tile.window.intersection(grid[index].window)
                if not band.is_empty:
                    found += matches(others, pieces, band, at_least)
            around[tile.index] = pieces
        groups.join(found)
        below = grid[(row + 1) * grid.columns].window.top if row + 1 < grid.rows else grid.height + 1
        done = [group for group in groups.groups() if all(piece.patch.window.bottom <= below for piece in group)]
        for group in done:
            groups.take(group)
            merged = merge(group, grid, by_cells=by_cells)
            if merged is not None:
                yield merged
        still_open = set(map(id, chain.from_iterable(groups.groups())))
        around = {
            index: kept for index, pieces in around.items() if (kept := [p for p in pieces if id(p) in still_open])
        }
