"""The grid of tiles: their windows, and the cells in which their answers count. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Final

from segserve_common.errors import BadRequestError

# Networks halve their input up to five times. Tiles that start at multiples of 32 are sampled on the same grid as the
# whole image.
LARGEST_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels; `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """The number of rows; 0 or less if empty."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """The number of columns; 0 or less if empty."""
        return self.right - self.left

    @property
    def is_empty(self) -> bool:
        """Whether the window contains no pixel."""
        return self.height <= 0 or self.width <= 0

    @property
    def area(self) -> int:
        """The number of pixels."""
        return 0 if self.is_empty else self.height * self.width

    def intersection(self, other: Window) -> Window:
        """Return the common part, possibly empty."""
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def hull(self, other: Window) -> Window:
        """Return the smallest window that contains both."""
        return Window(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def slices(self, origin: tuple[int, int] = (0, 0)) -> tuple[slice, slice]:
        """Return the index into an array whose first pixel is at `origin` (top, left)."""
        top, left = origin
        return slice(self.top - top, self.bottom - top), slice(self.left - left, self.right - left)


@dataclass(frozen=True, slots=True)
class Tile:
    """One request: the network sees `window`, and its answer counts in `cell`."""

    index: int
    row: int
    column: int
    window: Window
    cell: Window


@dataclass(frozen=True)
class Grid:
    """The tiles of an image of `height` x `width` pixels.

    Cells of `tile - overlap` pixels lie side by side; the last of a row or column is up to half an overlap larger.
    Every pixel is in exactly one cell. A window extends half the overlap beyond its cell; at the image's border it is
    moved inwards, so that a network with a fixed input size gets full tiles (in the last row and column up to 31 pixels
    less, to keep their alignment). Thus each pixel is answered by the tile whose cut edges are farthest away.

    Raises `BadRequestError` for a tile below 64 pixels, and for an overlap that is odd or more than half a tile.
    """

    height: int
    width: int
    tile: int = 1024
    overlap: int = 128

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise BadRequestError(f"an image must have at least one pixel, got {self.height} x {self.width}")
        if not 64 <= self.tile <= 16384:
            raise BadRequestError(f"tile must be 64 to 16384 pixels, got {self.tile!r}")
        if not 0 <= self.overlap <= self.tile // 2 or self.overlap % 2:
            raise BadRequestError(
                f"overlap must be even and at most half the tile, 0 to {self.tile // 2}, got {self.overlap!r}"
            )

    @property
    def core(self) -> int:
        """The side of a cell in pixels."""
        return self.tile - self.overlap

    @cached_property
    def rows(self) -> int:
        """The number of rows of tiles."""
        return self._count(self.height)

    @cached_property
    def columns(self) -> int:
        """The number of columns of tiles."""
        return self._count(self.width)

    def __len__(self) -> int:
        return self.rows * self.columns

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(f"tile index {index} is out of range for {len(self)} tiles")
        row, column = divmod(index, self.columns)
        seen_y, own_y = self._span(row, self.height, self.rows)
        seen_x, own_x = self._span(column, self.width, self.columns)
        return Tile(
            index,
            row,
            column,
            window=Window(seen_y[0], seen_x[0], seen_y[1], seen_x[1]),
            cell=Window(own_y[0], own_x[0], own_y[1], own_x[1]),
        )

    def row(self, row: int) -> Iterator[Tile]:
        """Yield the tiles of one row from left to right."""
        return (self[row * self.columns + column] for column in range(self.columns))

    def owners(self, window: Window) -> Iterator[int]:
        """Yield the indices of the tiles whose cells contain pixels of `window`."""
        rows, columns = (
            range(max(min(start // self.core, count - 1), 0), min((stop - 1) // self.core, count - 1) + 1)
            for start, stop, count in (
                (window.top, window.bottom, self.rows),
                (window.left, window.right, self.columns),
            )
        )
        return (row * self.columns + column for row in rows for column in columns)

    def _count(self, size: int) -> int:
        return 1 if size <= self.tile else -(-(size - self.overlap // 2) // self.core)

    def _span(self, place: int, size: int, count: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return start and end of a window, and of its cell, along one axis."""
        last = place == count - 1
        own = place * self.core, size if last else (place + 1) * self.core
        start = max(place * self.core - self.overlap // 2, 0)
        if last:
            start = min(start, self._aligned(max(size - self.tile, 0)))
        return (start, min(start + self.tile, size)), own

    def _aligned(self, start: int) -> int:
        step = gcd(self.core, self.overlap // 2, LARGEST_ALIGNMENT)
        return -(-start // step) * step
