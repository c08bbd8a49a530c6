"""Outlines of masks: from the border pixels that OpenCV finds to pixels' corners, and with fewer points."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source

# Directions count against the clock from east; a step (dx, dy) has entry 3 * dy + dx + 4, y grows downwards.
_DIRECTION: Final = np.array([3, 2, 1, 4, 0, 0, 5, 6, 7], np.int64)
# Where a side of a pixel (east, north, west, south) begins, with the pixel to the left of it.
_CORNER_X: Final = np.array([1, 1, 0, 0], np.int32)
_CORNER_Y: Final = np.array([1, 0, 0, 1], np.int32)
_FINEST: Final = 0.25
MOST_DIGITS: Final = 10
"""A positive int32 has no more digits."""


@njit(types.Array(types.int32, 2, "C")(source(types.int32, 2), types.int64, types.int64), **OPTIONS)
def _corners(ring: Any, left: Any, top: Any) -> Any:
    n = ring.shape[0]
    out = np.empty((4 * n, 2), np.int32)
    m, first, last = 0, -1, -1
    for p in range(n):
        before, after = ring[p - 1 if p else n - 1], ring[p + 1 if p + 1 < n else 0]
        x, y = ring[p, 0], ring[p, 1]
        if n == 1:
            back, sides = -1, 8
        else:
            back = _DIRECTION[3 * (before[1] - y) + before[0] - x + 4]
            sides = (_DIRECTION[3 * (after[1] - y) + after[0] - x + 4] - back - 1) & 7
        for k in range(back + 1, back + 1 + sides):  # neighbours between where it came from and where it goes are 0
            if k & 1:
                continue
            side = (k & 7) >> 1
            if side != last:
                out[m, 0], out[m, 1] = left + x + _CORNER_X[side], top + y + _CORNER_Y[side]
                m += 1
            if first < 0:
                first = side
            last = side
    begin = 1 if first == last else 0
    return out[begin:m].copy()


def corners(border: NDArray[np.int32], left: int, top: int) -> NDArray[np.int32]:
    """Return the outline of a region as the corners of pixels at which it turns, int32 (P, 2) as x y, P >= 4.

    `border` (N, 2) holds its outer border pixels, 8-connected in the order of OpenCV's findContours without
    approximation; `left` and `top` are added.
    """
    outline: NDArray[np.int32] = _corners(packed(border, np.int32, 2), left, top)
    return outline


@njit(**OPTIONS)
def _farthest(x: Any, y: Any, a: Any, b: Any) -> Any:
    """Return the point between a and b farthest from their segment, and its squared distance.

    Whole numbers are compared, all times the segment's squared length.
    """
    ax, ay = x[a], y[a]
    dx, dy = x[b] - ax, y[b] - ay
    square = dx * dx + dy * dy
    point = square == 0
    if point:
        square += 1
    best, found = np.int64(-1), a
    for k in range(a + 1, b):
        px, py = x[k] - ax, y[k] - ay
        along = px * dx + py * dy
        if along <= 0 or point:
            distance = (px * px + py * py) * square
        elif along >= square:
            distance = ((px - dx) * (px - dx) + (py - dy) * (py - dy)) * square
        else:
            cross = px * dy - py * dx
            distance = cross * cross
        if distance > best:
            best, found = distance, k
    return found, best / square


@njit(**OPTIONS)
def _kept(ring: Any, tolerance: Any) -> Any:
    """Return the points that Douglas and Peucker keep of a closed ring: at least three."""
    n = ring.shape[0]
    x, y = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    for k in range(n + 1):
        x[k], y[k] = ring[k % n, 0], ring[k % n, 1]
    keep = np.zeros(n, np.bool_)
    opposite, _ = _farthest(x, y, 0, n)
    keep[0] = keep[opposite] = True
    pending = np.empty((n + 2, 2), np.int64)
    pending[0, 0], pending[0, 1], pending[1, 0], pending[1, 1] = 0, opposite, opposite, n
    top, number = 2, 2
    spare, spare_distance = 0, 0.0
    while top:
        top -= 1
        a, b = pending[top, 0], pending[top, 1]
        k, square = _farthest(x, y, a, b)
        if square > tolerance * tolerance:
            keep[k] = True
            number += 1
            pending[top, 0], pending[top, 1], pending[top + 1, 0], pending[top + 1, 1] = a, k, k, b
            top += 2
        elif square > spare_distance:
            spare, spare_distance = k, square
    if number < 3:
        keep[spare] = True
    return ring[keep]


@njit(**OPTIONS)
def _turn(a: Any, b: Any, c: Any) -> Any:
    """Return the sign of the turn a - b - c."""
    area = np.int64(b[0] - a[0]) * np.int64(c[1] - a[1]) - np.int64(b[1] - a[1]) * np.int64(c[0] - a[0])
    return np.sign(area)


@njit(**OPTIONS)
def _crosses(ring: Any) -> Any:
    """Return whether two sides of a polygon cross; touching does not count."""
    n = ring.shape[0]
    low, high = np.empty(n, np.int32), np.empty(n, np.int32)
    for i in range(n):
        x, other = ring[i, 0], ring[(i + 1) % n, 0]
        low[i], high[i] = min(x, other), max(x, other)
    order = np.argsort(low)
    for p in range(n):
        i = order[p]
        a, b = ring[i], ring[(i + 1) % n]
        for q in range(p + 1, n):
            j = order[q]
            if low[j] > high[i]:
                break
            c, d = ring[j], ring[(j + 1) % n]
            if max(a[1], b[1]) < min(c[1], d[1]) or max(c[1], d[1]) < min(a[1], b[1]):
                continue
            if _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0:
                return True
    return False


@njit(types.Array(types.int32, 2, "C")(source(types.int32, 2), types.float64), **OPTIONS)
def _simplify(ring: Any, tolerance: Any) -> Any:
    while tolerance >= _FINEST:
        fewer = _kept(ring, tolerance)
        if not _crosses(fewer):
            return fewer
        tolerance /= 2
    return ring.copy()


def simplified(ring: NDArray[np.int32], tolerance: float) -> NDArray[np.int32]:
    """Return a polygon of some of the points of `ring`, int32 (P, 2), at least 3 of them, whose sides do not cross.

    No point of `ring` is farther than `tolerance` from the side that replaces it (Douglas and Peucker, 1973; OpenCV's
    approxPolyDP exceeds it, as it drops points once more). Where sides would cross, it is halved until they do not.
    Raises `ValueError` if the ring has fewer than three points.
    """
    ring = packed(ring, np.int32, 2)
    if len(ring) < 3:
        raise ValueError(f"the ring has {len(ring)} points; at least 3 are allowed")
    fewer: NDArray[np.int32] = _simplify(ring, tolerance)
    return fewer


@njit(**OPTIONS)
def _write_number(value: Any, out: Any, p: Any) -> Any:
    """Write a whole number from 0 on at out[p:]; return the end."""
    digits = 1
    power = 10
    while value >= power:
        digits += 1
        power *= 10
    for place in range(p + digits - 1, p - 1, -1):
        out[place] = 48 + value % 10
        value //= 10
    return p + digits


@njit(types.Array(types.uint8, 1, "C")(source(types.int32, 1)), **OPTIONS)
def _numbers_json(numbers: Any) -> Any:
    out = np.empty(numbers.shape[0] * (MOST_DIGITS + 1) + 2, np.uint8)
    out[0] = 91
    p = 1
    for i in range(numbers.shape[0]):
        p = _write_number(np.int64(numbers[i]), out, p)
        out[p] = 44
        p += 1
    p = max(p - 1, 1)  # the last comma becomes the bracket
    out[p] = 93
    return out[: p + 1]


def ring_json(ring: NDArray[np.int32]) -> bytes:
    """Return a ring of points (P, 2), none of them negative, as JSON: [x,y,x,y,...].

    Points are int32.
    """
    text: bytes = _numbers_json(packed(ring, np.int32, 2).reshape(-1)).tobytes()
    return text
