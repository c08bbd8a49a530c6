"""Matching: which pieces in neighbouring tiles show the same object, in whichever order tiles come.

Merging: one object from its pieces, emitted once no further tile can add to it. Both are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.tiled.grid import Grid, Window
from segserve.tiled.tile_masks import LocalRle, Piece, decode, encode_intervals, intervals

Id: TypeAlias = tuple[int, int]
SAME: Final = 0.5
# Objects are drawn in strips of this width, to bound memory for objects of any size.
STRIP_PX: Final = 1024

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Match:
    """Two pieces that show the same pixels; `strength` is 0 to 1."""

    strength: float
    first: Piece
    second: Piece

    @property
    def key(self) -> tuple[object, ...]:
        """The sort key: strongest first, independent of which piece was named first."""
        return -self.strength, *sorted((self.first.key, self.second.key))


def id_of(piece: Piece) -> Id:
    """Return the unique id of a piece."""
    return piece.tile, piece.number


def strength(first: Piece, second: Piece, band: Window) -> float:
    """Return how much two pieces of one class agree in the `band` that both tiles show, 0 to 1.

    This is the IoU of their parts in the band. A piece cut by its tile is a fragment; for fragments, the intersection
    over the smaller piece also counts, so a fragment inside an object belongs to that object.
    """
    shared = first.patch.window.intersection(second.patch.window)
    if first.class_id != second.class_id or shared.is_empty:
        return 0.0
    both = int(np.count_nonzero(first.patch.within(shared) & second.patch.within(shared)))
    if both == 0:
        return 0.0
    iou = both / (first.patch.area_within(band) + second.patch.area_within(band) - both)
    if first.is_whole and second.is_whole:
        return iou
    return max(iou, both / min(first.area, second.area))


def matches(first: Sequence[Piece], second: Sequence[Piece], band: Window, at_least: float = SAME) -> list[Match]:
    """Return the pairs of pieces of two tiles that agree by at least `at_least`."""
    if not first or not second:
        return []
    boxes, others = (np.array([_bounds(piece) for piece in pieces]) for pieces in (first, second))
    starts = np.maximum(boxes[:, None, :2], others[None, :, :2])
    ends = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    found = []
    for i, j in np.argwhere((starts < ends).all(axis=2)).tolist():
        value = strength(first[i], second[j], band)
        if value >= at_least:
            found.append(Match(value, first[i], second[j]))
    return found


def _bounds(piece: Piece) -> tuple[int, int, int, int]:
    window = piece.patch.window
    return window.top, window.left, window.bottom, window.right


@dataclass
class Groups:
    """Groups of pieces that are one object. Two whole pieces share a group only if they match each other.

    Otherwise a fragment that overlaps two touching objects would merge them, and one would be lost.
    """

    _members: dict[Id, list[Piece]] = field(default_factory=dict)
    _group_of: dict[Id, Id] = field(default_factory=dict)
    _matched: dict[Id, set[Id]] = field(default_factory=dict)

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add each piece as a group of its own."""
        for piece in pieces:
            self._members[id_of(piece)] = [piece]
            self._group_of[id_of(piece)] = id_of(piece)

    def join(self, found: Iterable[Match]) -> None:
        """Join the groups of matching pieces, strongest match first."""
        ordered = sorted(found, key=lambda match: match.key)
        for match in ordered:
            self._matched.setdefault(id_of(match.first), set()).add(id_of(match.second))
            self._matched.setdefault(id_of(match.second), set()).add(id_of(match.first))
        # Only once all matches are known: whether two groups may join also depends on weaker matches.
        for match in ordered:
            one, other = (self._group_of[id_of(piece)] for piece in (match.first, match.second))
            if one != other and self._may_join(one, other):
                self._unite(min(one, other), max(one, other))

    def groups(self) -> list[list[Piece]]:
        """Return every group, with its pieces in the order of their keys."""
        return [sorted(pieces, key=lambda piece: piece.key) for _, pieces in sorted(self._members.items())]

    def take(self, group: Sequence[Piece]) -> None:
        """Remove a group that no further piece can join."""
        ids = {id_of(piece) for piece in group}
        del self._members[self._group_of[next(iter(ids))]]
        for known in ids:
            del self._group_of[known]
            for other in self._matched.pop(known, ()):
                self._matched.get(other, set()).discard(known)

    def _may_join(self, one: Id, other: Id) -> bool:
        wholes = [[id_of(piece) for piece in self._members[group] if piece.is_whole] for group in (one, other)]
        return all(b in self._matched.get(a, ()) for a in wholes[0] for b in wholes[1])

    def _unite(self, kept: Id, gone: Id) -> None:
        for piece in self._members[gone]:
            self._group_of[id_of(piece)] = kept
        self._members[kept] += self._members.pop(gone)


@dataclass(frozen=True, eq=False)
class TiledObject:
    """One object of a large image.

    `id` counts from 1 and is the object's value in the map of ids. `box` is x1, y1, x2, y2 in pixels of the image.
    `origin` is x and y of the mask's first pixel, and `rle` the mask within its own box as COCO RLE; both are None for
    models without masks. `area` is in pixels, the box's area if there is no mask. `points` are x, y, score of each
    keypoint. `tiles` are the indices of the tiles that showed the object.
    """

    id: int
    class_id: int
    class_name: str
    score: float
    box: Box
    area: int
    origin: tuple[int, int] | None = None
    rle: LocalRle | None = None
    points: tuple[tuple[float, float, float], ...] | None = None
    tiles: tuple[int, ...] = ()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask within its own box, bool (h, w), with its first pixel at `origin`. Raises `ValueError` without a
        mask.
        """
        if self.rle is None:
            raise ValueError(f"object {self.id} has no mask: its model returns boxes")
        return decode(self.rle)

    @property
    def window(self) -> Window:
        """The pixels covered by the mask's box, or by the box if there is no mask."""
        if self.origin is None or self.rle is None:
            x1, y1, x2, y2 = self.box
            return Window(int(np.floor(y1)), int(np.floor(x1)), int(np.ceil(y2)), int(np.ceil(x2)))
        (left, top), (height, width) = self.origin, self.rle["size"]
        return Window(top, left, top + height, left + width)


@dataclass(frozen=True, eq=False)
class Merged:
    """An object merged from `pieces`, without its number and class name."""

    piece: Piece
    pieces: tuple[Piece, ...]
    score: float
    box: Box
    area: int
    origin: tuple[int, int] | None
    rle: LocalRle | None

    def numbered(self, number: int, class_name: str) -> TiledObject:
        """Return the object with its number and the name of its class."""
        return TiledObject(
            number,
            self.piece.class_id,
            class_name,
            self.score,
            self.box,
            self.area,
            self.origin,
            self.rle,
            self.piece.points,
            tuple(sorted({piece.tile for piece in self.pieces})),
        )


def merge(group: Sequence[Piece], grid: Grid, *, by_cells: bool = False) -> Merged | None:
    """Return the object that a group of matching pieces shows, or None if no tile is responsible for it.

    - If a tile shows the object whole, the result comes from the tile in which it lies farthest from the cut edges. For
      an object in several parts, a tile may show one part uncut; then the cells of the other tiles show that it
      continues.
    - Otherwise every tile contributes the part in its own cell, and pixels outside the cells of the group's tiles. The
      score is the mean weighted by contributed pixels. `by_cells` always merges this way, and from the cells only.
    - A lone piece without a pixel in its tile's cell is None: the tile with that cell had a better view and found
      nothing.
    """
    ordered = sorted(group, key=lambda piece: piece.key)
    shares = [piece.patch.area_within(grid[piece.tile].cell) for piece in ordered]
    if not any(shares) and (by_cells or len(ordered) == 1):
        return None
    wholes = [piece for piece in ordered if piece.is_whole and not _goes_on_beyond(piece, ordered, grid)]
    if wholes and not by_cells:
        return _as_shown(min(wholes, key=lambda piece: (-_depth(piece, grid), piece.key)), ordered)
    weights = shares if any(shares) else [piece.area for piece in ordered]
    score = float(np.average([piece.score for piece in ordered], weights=weights))
    # Keypoints cannot be merged: they come from the piece with the largest part of the object.
    best = min(zip(weights, ordered, strict=True), key=lambda pair: (-pair[0], pair[1].key))[1]
    boxes = np.array([piece.box for piece in ordered])
    x1, y1 = boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes[:, 2:].max(axis=0).tolist()
    if not best.has_mask:
        return Merged(best, tuple(ordered), score, (x1, y1, x2, y2), _box_area((x1, y1, x2, y2)), None, None)
    window = _drawn_window(ordered, grid, by_cells=by_cells)
    if window is None:
        return None
    strips = enumerate(_strips(ordered, window, grid, by_cells=by_cells))
    found = np.concatenate([intervals(strip, number * STRIP_PX * window.height) for number, strip in strips])
    box = (float(window.left), float(window.top), float(window.right), float(window.bottom))
    area = int((found[:, 1] - found[:, 0]).sum())
    rle = encode_intervals(found, window.height, window.width)
    return Merged(best, tuple(ordered), score, box, area, (window.left, window.top), rle)


def _goes_on_beyond(piece: Piece, others: Sequence[Piece], grid: Grid) -> bool:
    """Return whether another tile's cell has pixels of the object outside the window of the piece's tile."""
    seen = grid[piece.tile].window
    cells = [grid[other.tile].cell for other in others]
    return any(
        other.patch.area_within(cell) > other.patch.area_within(cell.intersection(seen))
        for other, cell in zip(others, cells, strict=True)
    )


def _depth(piece: Piece, grid: Grid) -> int:
    """Return the distance in pixels between the piece and the nearest cut edge of its tile."""
    seen, own = grid[piece.tile].window, piece.patch.window
    far = max(grid.height, grid.width)
    return min(
        own.top - seen.top if seen.top > 0 else far,
        own.left - seen.left if seen.left > 0 else far,
        seen.bottom - own.bottom if seen.bottom < grid.height else far,
        seen.right - own.right if seen.right < grid.width else far,
    )


def _as_shown(piece: Piece, ordered: Sequence[Piece]) -> Merged:
    if not piece.has_mask:
        return Merged(piece, tuple(ordered), piece.score, piece.box, _box_area(piece.box), None, None)
    patch = piece.patch
    height, width = patch.bitmap.shape
    rle = encode_intervals(intervals(patch.bitmap), height, width)
    return Merged(piece, tuple(ordered), piece.score, piece.box, piece.area, (patch.left, patch.top), rle)


def _drawn_window(pieces: Sequence[Piece], grid: Grid, *, by_cells: bool) -> Window | None:
    """Return the bounding window of the pixels drawn from the pieces, or None without pixels."""
    windows = [piece.patch.window for piece in pieces]
    hull = reduce(Window.hull, windows)
    in_row, in_column = np.zeros(hull.height, np.bool_), []
    for strip in _strips(pieces, hull, grid, by_cells=by_cells):
        in_row |= strip.any(axis=1)
        in_column.append(strip.any(axis=0))
    ys, xs = np.flatnonzero(in_row), np.flatnonzero(np.concatenate(in_column))
    if ys.size == 0:
        return None
    top, left = hull.top + int(ys[0]), hull.left + int(xs[0])
    return Window(top, left, hull.top + int(ys[-1]) + 1, hull.left + int(xs[-1]) + 1)


def _strips(pieces: Sequence[Piece], window: Window, grid: Grid, *, by_cells: bool) -> Iterator[NDArray[np.bool_]]:
    """Yield the object in `window`, drawn in strips from left to right."""
    cells = [grid[piece.tile].cell for piece in pieces]
    for left in range(window.left, window.right, STRIP_PX):
        strip = Window(window.top, left, window.bottom, min(left + STRIP_PX, window.right))
        canvas = np.zeros((strip.height, strip.width), np.bool_)
        if not by_cells:
            for piece in pieces:
                _paint(canvas, strip, piece, strip)
            for cell in cells:
                part = strip.intersection(cell)
                if not part.is_empty:
                    canvas[part.slices((strip.top, strip.left))] = False
        for piece, cell in zip(pieces, cells, strict=True):
            _paint(canvas, strip, piece, cell)
        yield canvas


def _paint(canvas: NDArray[np.bool_], strip: Window, piece: Piece, within: Window) -> None:
    part = strip.intersection(piece.patch.window).intersection(within)
    if not part.is_empty:
        canvas[part.slices((strip.top, strip.left))] |= piece.patch.within(part)


def _box_area(box: Box) -> int:
    x1, y1, x2, y2 = box
    return round((x2 - x1) * (y2 - y1))


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
        # No later tile shows a piece that ends above the next row of tiles; after the last row, nothing is left open.
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
