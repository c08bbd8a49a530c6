"""Exact outlines of masks along the edges of their pixels, with holes, in plain numpy."""

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
    """A 4-connected part of a mask: its `outer` ring and the rings of its `holes`, each float64 (N, 2), x before y.

    Rings follow pixel edges, in pixels from the image's top left corner; the first point is not repeated at the end.
    Outer rings run clockwise as seen on screen, holes counterclockwise. Rings do not cross or touch themselves; a hole
    may touch another ring at single points.
    """

    outer: Ring
    holes: tuple[Ring, ...] = ()

    def moved(self, x: float, y: float) -> Part:
        """Return the part for a mask whose top left corner is at `x`, `y`."""
        corner = np.array((x, y))
        return Part(self.outer + corner, tuple(hole + corner for hole in self.holes))


@dataclass(frozen=True, slots=True)
class _Border:
    """The corners of one border in walking order, int (N, 2); `is_hole` if the part lies around it."""

    corners: NDArray[np.int64]
    is_hole: bool


def trace(bitmap: NDArray[np.bool_]) -> list[Part]:
    """Return the 4-connected parts of a mask, bool (H, W), with their holes, ordered by their topmost corners.

    The parts are valid polygons for OGC and shapely, and cover exactly the mask's pixels.
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
    """Return the outer ring of each 4-connected part of a mask, for formats without holes.

    If a part touches itself at a corner, the ring passes that corner twice and does not fill the gap.
    """
    corners = _Corners.of(bitmap)
    rings = (corners.walk(cycle) for cycle in corners.cycles())
    return [ring.astype(np.float64) for ring in rings if _signed_area(ring) > 0]


def through_centres(ring: Ring) -> Ring:
    """Return an outer ring half a pixel further in, through the centres of border pixels, as OpenCV's contours run.

    Rasterisers that draw a polygon's outline in addition to filling it need this form.
    """
    forward = np.sign(np.roll(ring, -1, axis=0) - ring)
    inward = forward + np.roll(forward, 1, axis=0)
    # The mask is on the right of each edge; a corner moves in from both of its edges.
    inset: Ring = ring + np.stack([-inward[:, 1], inward[:, 0]], 1) / 2 - 0.5
    return inset


@dataclass(frozen=True, slots=True, eq=False)
class _Corners:
    """Every corner of a mask's borders; a corner between two diagonal pixels appears twice.

    `x` and `y` are in reading order. A border's horizontal edge leads from corner i to `across[i]`, its vertical edge
    from there to `down[across[i]]`; `starts` are the i's from which the mask is on the right.
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
        # The first copy ends the edge from the left, the second begins the edge to the right. Each has
        # the vertical edge that is a side of the same pixel, which keeps diagonal pixels apart.
        order = np.where(around == _RISING, 1 - second, second)
        across, down = np.arange(len(x)) ^ 1, np.empty(len(x), np.int64)
        by_column = np.lexsort((order, y, x))
        down[by_column] = by_column[np.arange(len(x)) ^ 1]
        left = np.arange(0, len(x), 2)
        starts = np.where(padded[y[left] + 1, x[left] + 1] > 0, left, left + 1)
        return cls(x, y, across, down, starts)

    def cycles(self) -> list[list[int]]:
        """Return the starts of each border's horizontal edges in walking order, borders in reading order."""
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
        """Return all corners of a border, (N, 2), x before y; an outer border starts at its topmost left corner."""
        begins = np.array(cycle)
        order = np.stack([begins, self.across[begins]], 1).ravel()
        return np.stack([self.x[order], self.y[order]], 1)

    def owners(self, cycles: list[list[int]], bitmap: NDArray[np.bool_]) -> list[int]:
        """Return for each border the number of the outer border around the same part."""
        border_of = np.empty(len(self.x), np.int64)
        for number, cycle in enumerate(cycles):
            border_of[cycle] = number
        border_of[self.across[self.starts]] = border_of[self.starts]
        tops = np.array([np.minimum(cycle, self.across[cycle]).min() for cycle in cycles], np.int64)
        is_hole = [not bitmap[self.y[top], self.x[top]] for top in tops.tolist()]
        lefts = self._borders_to_the_left(tops[is_hole], border_of, bitmap) if any(is_hole) else iter(())
        owners: list[int] = []
        # A border further left in the same row starts above this one or before it, so its owner is known.
        for number, inside in enumerate(is_hole):
            owners.append(owners[next(lefts)] if inside else number)
        return owners

    def _borders_to_the_left(
        self, tops: NDArray[np.int64], border_of: NDArray[np.int64], bitmap: NDArray[np.bool_]
    ) -> Iterator[int]:
        """Yield the border at which the run of mask pixels that ends at each of these corners starts."""
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
    # Each horizontal edge bounds the area between it and the x axis; vertical edges contribute nothing.
    x, y = ring[:, 0], ring[:, 1]
    return float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() + (x[-1] - x[0]) * (y[-1] + y[0])) / 2
