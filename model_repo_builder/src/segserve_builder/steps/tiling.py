"""Overlapping tiles of an image: their positions, padding, and the blending of their logits.

Tiles come row by row, and pixels are complete after the last tile that covers them, so that the label map of an image
of any height takes the memory of one row of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve_builder.errors import PipelineError
from segserve_builder.kernels.blend import Span, TileWeights, add_tile, divide_rows
from segserve_builder.kernels.labels import label_map
from segserve_builder.sampling import Axis
from segserve_builder.stages.tile import TiledInference


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of an image or of its logits, `height` x `width`: row by row, from left to right."""

    height: int
    width: int
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        """Yield each tile's position along the height and along the width."""
        return ((row, column) for row in self.rows for column in self.columns)

    def shrunk(self, vertical: int, horizontal: int) -> TileGrid:
        """Return the grid of a map that many times smaller."""
        rows = tuple(Span(*(number // vertical for number in span.numbers())) for span in self.rows)
        columns = tuple(Span(*(number // horizontal for number in span.numbers())) for span in self.columns)
        return TileGrid(self.height // vertical, self.width // horizontal, rows, columns)


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tiles of an image of one size."""

    options: TiledInference
    grid: TileGrid

    @classmethod
    def of(cls, options: TiledInference, height: int, width: int) -> TilePlan:
        """Lay tiles over an image of `height` x `width` pixels.

        They start as MONAI's sliding window starts them, but at multiples of `multipleOf`, so that the last ones may
        reach beyond the image. An image smaller than a tile lies in the middle of it.
        """
        rows = _spans(height, options.height, options)
        return cls(options, TileGrid(height, width, rows, _spans(width, options.width, options)))

    def logits_grid(self, height: int, width: int) -> TileGrid:
        """Return the grid of the logits, of which a tile has `height` x `width`.

        Raises `PipelineError` if a tile is not a whole multiple of that, or if tiles or the image would begin or end
        between two logits.
        """
        options, grid = self.options, self.grid
        vertical = _ratio("height", options.height, height, options.multiple_of, grid.height)
        return grid.shrunk(vertical, _ratio("width", options.width, width, options.multiple_of, grid.width))


def tiles(plan: TilePlan, read: Callable[[int, int, int, int], NDArray[Any]], axes: tuple[int, int]) -> Iterator[Any]:
    """Yield the pixels of each tile, padded where it reaches beyond the image.

    `read(top, left, height, width)` returns that part of the image; its rows and columns are the axes `axes`. They have
    the dtype of the image.
    """
    options = plan.options
    for row, column in plan.grid:
        part = read(row.start, column.start, row.size, column.size)
        around = [(0, 0)] * part.ndim
        around[axes[0]] = (row.skip, options.height - row.skip - row.size)
        around[axes[1]] = (column.skip, options.width - column.skip - column.size)
        if not any(map(any, around)):
            yield part
        elif options.padding == "constant":
            yield np.pad(part, around, "constant", constant_values=options.pad_value)
        else:
            yield np.pad(part, around, options.padding)


def answers(
    pixels: Iterable[NDArray[Any]], call: Callable[[NDArray[Any]], NDArray[Any]], max_batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield each tile's logits, float32 (C, th, tw); the network runs on at most `max_batch_size` tiles at a time."""
    pixels = iter(pixels)
    while batch := list(islice(pixels, max_batch_size)):
        yield from call(np.stack(batch))


def merged(plan: TilePlan, logits: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the logits, float32 (C, h, w), of the whole image from its tiles' logits, float32 (C, th, tw).

    Beside the result it takes memory for the weights of one row of tiles. Raises `PipelineError` if the shapes do not
    fit the plan.
    """
    first, logits = _peeked(logits)
    classes, height, width = first.shape
    grid = plan.logits_grid(height, width)
    if len(grid) == 1:
        return _part_of(first, grid)
    window = TileWeights.of(plan.options.blend, height, width)
    total = np.empty((classes, grid.height, grid.width), np.float32)
    one, weights = np.ones((1, height, width), np.float32), np.empty((1, height, grid.width), np.float32)
    for row in grid.rows:
        for column, tile in _beside(grid, logits):
            add_tile(total, tile, window, row, column)
            add_tile(weights, one, window, row, column)
        divide_rows(total, weights, row.start, row.start + row.done)
    return total


def stream(plan: TilePlan, logits: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.uint8 | np.uint16]]:
    """Yield the label map's rows, uint8 or uint16 (n, w), from top to bottom, as soon as they are complete.

    `logits` are the tiles', float32 (C, th, tw). Ties go to the first class; a single channel is the logit of the
    second class of two. Memory is bounded by the sums of one row of tiles, and a tile. Raises `PipelineError` if the
    shapes do not fit the plan.
    """
    first, logits = _peeked(logits)
    classes, height, width = first.shape
    grid = plan.logits_grid(height, width)
    window = TileWeights.of(plan.options.blend, height, width)
    sums = np.empty((classes, min(height, grid.height), grid.width), np.float32)
    for row in grid.rows:
        for column, tile in _beside(grid, logits):
            add_tile(sums, tile, window, row, column)
        # The largest sum is also the largest mean: nothing is divided by the weights.
        yield from _labels(sums, row.start % sums.shape[1], row.done)


def _labels(sums: NDArray[np.float32], first: int, count: int) -> Iterator[NDArray[np.uint8 | np.uint16]]:
    """Yield the classes of `count` rows from `first` on; after the last row comes row 0."""
    columns = Axis(sums.shape[2], 0, sums.shape[2], 1.0, -0.5)
    while count:
        size = min(count, sums.shape[1] - first)
        yield label_map(sums, Axis(size, first, size, 1.0, -0.5), columns)
        first, count = 0, count - size


def _beside(grid: TileGrid, logits: Iterator[NDArray[np.float32]]) -> Iterator[tuple[Span, NDArray[np.float32]]]:
    """Yield the tiles of one row, each with its position in it."""
    return zip(grid.columns, islice(logits, len(grid.columns)), strict=True)


def _peeked(logits: Iterable[NDArray[np.float32]]) -> tuple[NDArray[np.float32], Iterator[NDArray[np.float32]]]:
    logits = iter(logits)
    first = next(logits)
    if first.ndim != 3:
        raise PipelineError(f"a tile's logits have shape {first.shape}; (classes, height, width) is expected")
    return first, chain([first], logits)


def _part_of(tile: NDArray[np.float32], grid: TileGrid) -> NDArray[np.float32]:
    (row,), (column,) = grid.rows, grid.columns
    part = tile[:, row.skip : row.skip + row.size, column.skip : column.skip + column.size]
    return np.ascontiguousarray(part, np.float32)


def _spans(size: int, tile: int, options: TiledInference) -> tuple[Span, ...]:
    multiple = options.multiple_of
    if size <= tile:
        skip = (tile - size) // 2 // multiple * multiple
        return (Span(0, skip, size, 0, size),)
    step = max(multiple, (tile - options.overlap_pixels(tile)) // multiple * multiple)
    last = ceil((size - tile) / multiple) * multiple
    starts = [*range(0, last, step), last]
    ends = [min(start + tile, size) for start in starts]
    old = [0, *(end - start for end, start in zip(ends[:-1], starts[1:], strict=True))]
    done = [*(after - start for start, after in pairwise(starts)), size - last]
    spans = zip(starts, ends, old, done, strict=True)
    return tuple(Span(start, 0, end - start, before, alone) for start, end, before, alone in spans)


def _ratio(side: str, tile: int, logits: int, multiple: int, size: int) -> int:
    ratio, rest = divmod(tile, logits)
    if rest or not ratio:
        raise PipelineError(f"logits of {side} {logits} for a tile of {side} {tile}; it must be a multiple of theirs")
    if multiple % ratio:
        raise PipelineError(f"the network's stride is {ratio}; tile.multipleOf is {multiple}, which it must divide")
    if size % ratio:
        raise PipelineError(
            f"the network's stride is {ratio}, and its input has {side} {size}; let preprocess resize it to "
            f"multipleOf {ratio}"
        )
    return ratio
