"""Stitching: areas, the table of objects and the map of their ids from the answered tiles."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segserve.results.values import ModelInfo
from segserve.tiled.checkpoint import PART, Checkpoint
from segserve.tiled.grid import Grid, Tile, Window
from segserve.tiled.maps import PixelMap
from segserve.tiled.merging import TiledObject, merged_objects
from segserve.tiled.results import object_of, row_of
from segserve.tiled.tile_masks import Piece, of_bitmap
from segserve.tiled.tile_results import pieces_of
from segserve_common.files import replacing


@dataclass(frozen=True, slots=True)
class StitchedTotals:
    """The totals of a stitched run: the revisions that answered, pixels by class id, the number of objects.

    `at_limit` is the number of tiles whose answer reached the limit of objects.
    """

    revisions: tuple[str, ...]
    areas: Mapping[int, int]
    objects: int = 0
    at_limit: int = 0


def count_labels(grid: Grid, checkpoint: Checkpoint) -> StitchedTotals:
    """Return the totals of a semantic model's tiles."""
    revisions: set[str] = set()
    areas: Counter[int] = Counter()
    for tile in grid:
        record = checkpoint.read(tile.index)
        revisions.add(record["revision"])
        areas.update({int(label): area for label, area in record["areas"].items()})
    return StitchedTotals(tuple(sorted(revisions)), areas)


def write_objects(
    grid: Grid, checkpoint: Checkpoint, info: ModelInfo, table: Path, *, at_least: float
) -> StitchedTotals:
    """Merge the objects of all tiles into a table, one per line."""
    reader = _Reader(grid, checkpoint)
    areas: Counter[int] = Counter()
    number = 0
    with replacing(table, suffix=PART) as partial, partial.open("w") as lines:
        for number, merged in enumerate(merged_objects(grid, reader.pieces, at_least=at_least), 1):
            found = merged.numbered(number, info.class_of(merged.piece.class_id).name)
            areas[found.class_id] += found.area
            lines.write(json.dumps(row_of(found), allow_nan=False) + "\n")
    return StitchedTotals(tuple(sorted(reader.revisions)), areas, number, len(reader.at_limit))


def write_segments(
    grid: Grid,
    checkpoint: Checkpoint,
    info: ModelInfo,
    table: Path,
    maps: tuple[PixelMap, PixelMap],
    *,
    at_least: float,
) -> StitchedTotals:
    """Give the segments of a panoptic model ids of the whole image: things merged across tiles, one segment per stuff
    class.

    `maps` are the map of the tiles' own ids and the map to write. The map and the table agree.
    """
    reader = _Reader(grid, checkpoint)
    numbers: dict[tuple[int, int], int] = {}
    areas: Counter[int] = Counter()
    number = 0
    with replacing(table, suffix=PART) as partial, partial.open("w") as lines:
        for number, merged in enumerate(merged_objects(grid, reader.pieces, at_least=at_least, by_cells=True), 1):
            numbers.update(((piece.tile, piece.number), number) for piece in merged.pieces)
            found = merged.numbered(number, info.class_of(merged.piece.class_id).name)
            areas[found.class_id] += found.area
            lines.write(json.dumps(row_of(found), allow_nan=False) + "\n")
        stuff = _relabel(grid, checkpoint, numbers, number, maps)
        for one in stuff.values():
            if one.area:
                areas[one.class_id] += one.area
                lines.write(json.dumps(row_of(one.to_object(info)), allow_nan=False) + "\n")
    return StitchedTotals(tuple(sorted(reader.revisions)), areas, number + sum(1 for one in stuff.values() if one.area))


def paint_ids(grid: Grid, table: Path, pixel_map: PixelMap) -> None:
    """Draw every object's id into the map, cell by cell; if masks overlap, the better score is on top."""
    # Offsets, not objects: all masks of a large image may not fit into memory.
    of_cell = _lines_by_cell(grid, table)
    with table.open("rb") as lines:
        for tile in grid:
            canvas = np.zeros((tile.cell.height, tile.cell.width), np.uint32)
            found = []
            for start in of_cell.get(tile.index, ()):
                lines.seek(start)
                found.append(object_of(json.loads(lines.readline())))
            for one in sorted(found, key=lambda one: (one.score, -one.id)):
                _draw(canvas, tile.cell, one)
            pixel_map.write(tile.cell, canvas)


@dataclass
class _Reader:
    """Reads the pieces of tiles; collects the revisions that answered, and which tiles reached the limit of objects."""

    grid: Grid
    checkpoint: Checkpoint
    revisions: set[str] = field(default_factory=set)
    at_limit: set[int] = field(default_factory=set)

    def pieces(self, index: int) -> Sequence[Piece]:
        record = self.checkpoint.read(index)
        self.revisions.add(record["revision"])
        if record.get("atLimit"):
            self.at_limit.add(index)
        return pieces_of(record, self.grid[index])


@dataclass
class _Stuff:
    """All segments of one stuff class."""

    id: int
    class_id: int
    weighted_score: float = 0.0
    weight: int = 0
    area: int = 0
    window: Window | None = None
    tiles: list[int] = field(default_factory=list)

    def add(self, tile: Tile, is_here: NDArray[np.bool_]) -> None:
        patch = of_bitmap(is_here)
        if patch is None:
            return
        self.area += int(np.count_nonzero(patch.bitmap))
        self.tiles.append(tile.index)
        part = patch.window
        top, left = tile.cell.top, tile.cell.left
        moved = Window(part.top + top, part.left + left, part.bottom + top, part.right + left)
        self.window = moved if self.window is None else self.window.hull(moved)

    def to_object(self, info: ModelInfo) -> TiledObject:
        known = self.window or Window(0, 0, 0, 0)
        box = (float(known.left), float(known.top), float(known.right), float(known.bottom))
        score = self.weighted_score / self.weight if self.weight else 0.0
        name = info.class_of(self.class_id).name
        return TiledObject(self.id, self.class_id, name, score, box, self.area, tiles=tuple(self.tiles))


def _relabel(
    grid: Grid,
    checkpoint: Checkpoint,
    numbers: Mapping[tuple[int, int], int],
    last: int,
    maps: tuple[PixelMap, PixelMap],
) -> Mapping[int, _Stuff]:
    """Write the map of the image's ids from the tiles' map, and return the stuff by class; its ids follow `last`."""
    own, whole = maps
    records = (checkpoint.read(tile.index) for tile in grid)
    classes = sorted({row["class"] for record in records for row in record["objects"] if row.get("is_stuff")})
    stuff = {class_id: _Stuff(last + place, class_id) for place, class_id in enumerate(classes, 1)}
    for tile in grid:
        # The tiles' own ids are uint16: with a table of all of them, one indexing renumbers a cell.
        new = np.zeros(1 << 16, np.uint32)
        ids = own.read(tile.cell)
        for number, row in enumerate(checkpoint.read(tile.index)["objects"]):
            if not row.get("is_stuff"):
                new[row["id"]] = numbers.get((tile.index, number), 0)
                continue
            one = stuff[row["class"]]
            one.weighted_score += row["score"] * row["area"]
            one.weight += row["area"]
            one.add(tile, ids == row["id"])
            new[row["id"]] = one.id
        whole.write(tile.cell, new[ids])
    return stuff


def _lines_by_cell(grid: Grid, table: Path) -> Mapping[int, list[int]]:
    """Return the offsets of the objects in the table by the tile whose cell they touch."""
    found: dict[int, list[int]] = {}
    with table.open("rb") as lines:
        start = 0
        for line in lines:
            for index in grid.owners(object_of(json.loads(line)).window):
                found.setdefault(index, []).append(start)
            start += len(line)
    return found


def _draw(canvas: NDArray[np.uint32], cell: Window, one: TiledObject) -> None:
    part = one.window.intersection(cell)
    if part.is_empty:
        return
    here = canvas[part.slices((cell.top, cell.left))]
    if one.rle is None:
        here[:] = one.id
    else:
        here[one.mask[part.slices((one.window.top, one.window.left))]] = one.id
