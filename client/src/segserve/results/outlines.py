"""Outlines of masks along the edges of their pixels, exact, with their holes. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ring: TypeAlias = "NDArray[np.float64]"

# Pixels around a corner, as bits: 1 above left, 2 above right, 4 below left, 8 below right.
_IS_TURN: Final = np.isin(np.arange(16), (1, 2, 4, 7, 8, 11, 13, 14))
_FALLING, _RISING = 9, 6


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A 4-connected part of a mask: its `outer` ring and those of its `holes`, each float64 (N, 2), x before y.

    Rings run along the edges of pixels, in pixels from the image's top left corner; the first point is not
    repeated at the end. Outer rings are clockwise as one sees the image, holes run the other way round. Rings
    do not cross or touch themselves; a hole may touch another ring at single points.
    """

    outer: Ring
    holes: tuple[Ring, ...] = ()

    def moved(self, x: float, y: float) -> Part:
        """Return the part where it is when the mask's top left corner is at `x`, `y`."""
        corner = np.array((x, y))
        return Part(self.outer + corner, tuple(hole + corner for hole in self.holes))


@dataclass(frozen=True, slots=True)
class _Border:
    """The corners of one border, int (N, 2), as they are walked; `is_hole` where the part lies around it."""

    corners: NDArray[np.int64]
    is_hole: bool


def trace(bitmap: NDArray[np.bool_]) -> list[Part]:
    """Return the 4-connected parts of a mask with their holes, in the order of their topmost corners.

    The parts' polygons are valid as OGC and shapely have it, and cover exactly the pixels of the mask.
    """
    corners = _Corners.of(bitmap)
    cycles = corners.cycles()
    owners = corners.owners(cycles, bitmap)
    outers: dict[int, NDArray[np.int64]] = {}
    holes: dict[int, list[NDArray[np.int64]]] = {}
    for owner, cycle in zip(owners, cycles, strict=True):
        for border in _untouching(corners.walk(cycle)):
            if border.is_hole:
                holes.setdefault(owner, []).append(border.corners)
            else:
                outers[owner] = border.corners
    return [
        Part(outer.astype(np.float64), tuple(hole.astype(np.float64) for hole in holes.get(owner, ())))
        for owner, outer in outers.items()
    ]


def outer_rings(bitmap: NDArray[np.bool_]) -> list[Ring]:
    """Return the outer ring of each 4-connected part of a mask, for formats that have no holes.

    Where a part touches itself at a corner the ring passes there twice, so as not to fill what lies beyond.
    """
    corners = _Corners.of(bitmap)
    rings = (corners.walk(cycle) for cycle in corners.cycles())
    return [ring.astype(np.float64) for ring in rings if _signed_area(ring) > 0]


def through_centres(ring: Ring) -> Ring:
    """Return an outer ring half a pixel further in, in the numbers of its border pixels: as OpenCV has contours.

    That is what rasterisers want that draw a polygon's outline as well as fill it.
    """
    forward = np.sign(np.roll(ring, -1, axis=0) - ring)
    inward = forward + np.roll(forward, 1, axis=0)
    # The mask is on the right of each edge; a corner moves in from both of its edges.
    inset: Ring = ring + np.stack([-inward[:, 1], inward[:, 0]], 1) / 2 - 0.5
    return inset


@dataclass(frozen=True, slots=True, eq=False)
class _Corners:
    """Every corner of a mask's borders; one where two pixels touch diagonally is there twice.

    `x` and `y` are in reading order. A border's horizontal edge leads from corner i to `across[i]`, its
    vertical edge from there to `down[across[i]]`; `starts` has the i's from which the mask is on the right.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    across: NDArray[np.int64]
    down: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, bitmap: NDArray[np.bool_]) -> _Corners:
        padded = np.pad(bitmap.astype(np.uint8), 1)
        around = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
        is_double = (around == _FALLING) | (around == _RISING)
        y, x = np.nonzero(_IS_TURN[around] | is_double)
        copies = 1 + is_double[y, x]
        around, y, x = np.repeat(around[y, x], copies), np.repeat(y, copies), np.repeat(x, copies)
        second = np.zeros(len(x), np.int64)
        second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
        # The first copy ends the edge from the left, the second begins that to the right. Of the vertical
        # edges each has the one that is a side of the same pixel, which keeps diagonal pixels apart.
        order = np.where(around == _RISING, 1 - second, second)
        across, down = np.arange(len(x)) ^ 1, np.empty(len(x), np.int64)
        by_column = np.lexsort((order, y, x))
        down[by_column] = by_column[np.arange(len(x)) ^ 1]
        left = np.arange(0, len(x), 2)
        starts = np.where(padded[y[left] + 1, x[left] + 1] > 0, left, left + 1)
        return cls(x, y, across, down, starts)

    def cycles(self) -> list[list[int]]:
        """Return the starts of each border's horizontal edges, as they are walked, borders in reading order."""
        following = self.down[self.across].tolist()
        is_left = bytearray(len(following))
        cycles = []
        for start in self.starts.tolist():
            if is_left[start]:
                continue
            cycle = []
            corner = start
            while not is_left[corner]:
                is_left[corner] = 1
                cycle.append(corner)
                corner = following[corner]
            cycles.append(cycle)
        return cycles

    def walk(self, cycle: list[int]) -> NDArray[np.int64]:
        """Return all corners of a border, (N, 2), x before y; of an outer one from its topmost left corner on."""
        begins = np.array(cycle)
        order = np.stack([begins, self.across[begins]], 1).ravel()
        return np.stack([self.x[order], self.y[order]], 1)

    def owners(self, cycles: list[list[int]], bitmap: NDArray[np.bool_]) -> list[int]:
        """Return for each border the number of the one that is around the same part of the mask from outside."""
        border_of = np.empty(len(self.x), np.int64)
        for number, cycle in enumerate(cycles):
            border_of[cycle] = number
        border_of[self.across[self.starts]] = border_of[self.starts]
        tops = np.array([np.minimum(cycle, self.across[cycle]).min() for cycle in cycles], np.int64)
        is_hole = [not bitmap[self.y[top], self.x[top]] for top in tops.tolist()]
        lefts = self._borders_to_the_left(tops[is_hole], border_of, bitmap) if any(is_hole) else iter(())
        owners: list[int] = []
        # A border on the left in the same row begins above this one or before it, so its owner is known.
        for number, inside in enumerate(is_hole):
            owners.append(owners[next(lefts)] if inside else number)
        return owners

    def _borders_to_the_left(
        self, tops: NDArray[np.int64], border_of: NDArray[np.int64], bitmap: NDArray[np.bool_]
    ) -> Iterator[int]:
        """Yield the border at which the run of mask pixels begins that ends at each of these corners."""
        height, width = bitmap.shape
        flat = np.zeros((height, width + 1), np.int8)
        flat[:, 1:] = bitmap  # in C order, and a column apart, so that no run goes on in the next row
        run_starts = np.flatnonzero(np.diff(flat.ravel()) == 1)
        places = self.y[tops] * (width + 1) + self.x[tops]
        begins = run_starts[np.searchsorted(run_starts, places) - 1]
        y, x = np.divmod(begins, width + 1)
        upper = np.flatnonzero(self.y[self.down] > self.y)
        key = self.x[upper] * (height + 1) + self.y[upper]
        sorted_upper = upper[np.argsort(key)]
        key = np.sort(key)
        edges = sorted_upper[np.searchsorted(key, x * (height + 1) + y, side="right") - 1]
        return iter(border_of[edges].tolist())


def _untouching(ring: NDArray[np.int64]) -> list[_Border]:
    """Split a ring at the corners that it passes twice."""
    points = (ring[:, 1] << 32 | ring[:, 0]).tolist()
    if len(set(points)) == len(points):
        return [_Border(ring, _signed_area(ring) < 0)]
    loops: list[list[int]] = []
    walked: list[int] = []
    place: dict[int, int] = {}
    for number, point in enumerate(points):
        if point in place:
            loop = walked[place[point] :]
            del walked[place[point] :]
            for passed in loop:
                del place[points[passed]]
            loops.append(loop)
        place[point] = len(walked)
        walked.append(number)
    return [_Border(ring[loop], _signed_area(ring[loop]) < 0) for loop in (*loops, walked)]


def _signed_area(ring: NDArray[np.int64]) -> float:
    # Each horizontal edge is the top or the bottom of what lies between it and the x axis; the sides add nothing.
    x, y = ring[:, 0], ring[:, 1]
    return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() + (x[-1] - x[0]) * (y[-1] + y[0])) / 2
