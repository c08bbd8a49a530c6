"""COCO run-length encoding read: compressed counts to bitmaps, within a window where that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, source, target
from segserve_builder.kernels.rle import MaskWindow


@njit(**OPTIONS)
def next_number(text: Any, p: Any, end: Any) -> Any:
    """Return the number whose characters begin at text[p], five bits each, and where they end."""
    value, shift, more = np.int64(0), 0, True
    while more and p < end:
        c = np.int64(text[p]) - 48
        value |= (c & 31) << shift
        shift += 5
        more = (c & 32) != 0
        if not more and c & 16:
            value |= np.int64(-1) << shift
        p += 1
    return value, p


@njit(**OPTIONS)
def _parse(string: Any, counts: Any) -> Any:
    n, p = 0, 0
    while p < string.size:
        value, p = next_number(string, p, string.size)
        if n > 2:
            value += counts[n - 2]
        counts[n] = value
        n += 1
    return n


@njit(**OPTIONS)
def _bounds(counts: Any, n: Any, height: Any) -> Any:
    """Return top, bottom, left, right of the set pixels; bottom and right are exclusive, all 0 if there are none."""
    top, bottom, left, right = height, np.int64(0), np.int64(0), np.int64(0)
    at, any_set = np.int64(0), False
    for i in range(n):
        stop = at + counts[i]
        if i & 1 and stop > at:
            x0, x1 = at // height, (stop - 1) // height
            if not any_set:
                left, any_set = x0, True
            right = x1 + 1
            top = min(top, at - x0 * height) if x0 == x1 else 0
            bottom = max(bottom, stop - x0 * height) if x0 == x1 else height
        at = stop
    return (top, bottom, left, right) if any_set else (np.int64(0), np.int64(0), np.int64(0), np.int64(0))


@njit(**OPTIONS)
def _paint(counts: Any, n: Any, height: Any, top: Any, left: Any, bitmap: Any) -> Any:
    """Set the pixels of the runs: where columns change is marked, then each row takes over from the one above."""
    h, w = bitmap.shape
    at = np.int64(0)
    for i in range(n):
        stop = at + counts[i]
        if i & 1 and stop > at:
            x0, x1 = at // height, stop // height
            bitmap[at - x0 * height - top, x0 - left] ^= 1
            row = stop - x1 * height
            for x in range(x0 + 1, x1 + (row > 0)):  # a run over several columns, like the window, has rows from 0 on
                bitmap[0, x - left] ^= 1
            if 0 < row < top + h:
                bitmap[row - top, x1 - left] ^= 1
        at = stop
    for y in range(1, h):
        above, here = bitmap[y - 1], bitmap[y]
        for x in range(w):
            here[x] ^= above[x]


@njit(
    types.Tuple((types.Array(types.uint8, 2, "C"), types.int64, types.int64, types.int64))(
        source(types.uint8, 1), types.int64, types.int64, types.int64
    ),
    **OPTIONS,
)
def _decode(string: Any, height: Any, width: Any, margin: Any) -> Any:
    """Return the window around the set pixels, its top and left, and the sum of the counts; a margin < 0 means all."""
    counts = np.empty(string.size, np.int64)
    n = _parse(string, counts)
    total = np.int64(0)
    for i in range(n):
        if counts[i] < 0:
            return np.zeros((0, 0), np.uint8), np.int64(0), np.int64(0), np.int64(-1)
        total += counts[i]
    nowhere: Any = np.int64(0)
    top, bottom, left, right = nowhere, height, nowhere, width
    if total != height * width:
        return np.zeros((0, 0), np.uint8), top, left, total
    if margin >= 0:
        top, bottom, left, right = _bounds(counts, n, height)
        if right > left:
            top, bottom = max(top - margin, 0), min(bottom + margin, height)
            left, right = max(left - margin, 0), min(right + margin, width)
    bitmap = np.zeros((bottom - top, right - left), np.uint8)
    _paint(counts, n, height, top, left, bitmap)
    return bitmap, top, left, total


def decode(counts: bytes, height: int, width: int, margin: int = 0) -> MaskWindow:
    """Return the set pixels of a mask with `margin` pixels around them, as far as the mask reaches.

    Raises `ValueError` if the counts do not describe a mask of `height` x `width`.
    """
    bitmap, top, left, total = _decode(np.frombuffer(counts, np.uint8), height, width, margin)
    _check_total(total, height, width)
    return MaskWindow(bitmap, int(top), int(left))


def decode_bitmap(counts: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Return a whole mask as uint8 0/1 shaped (height, width); raises `ValueError` as `decode` does."""
    bitmap, _, _, total = _decode(np.frombuffer(counts, np.uint8), height, width, -1)
    _check_total(total, height, width)
    mask: NDArray[np.uint8] = bitmap
    return mask


@njit(**OPTIONS)
def _root(parent: Any, run: Any) -> Any:
    while parent[run] != run:
        run = parent[run]
    return run


@njit(**OPTIONS)
def _join(starts: Any, stops: Any, parent: Any, before: Any, first: Any, end: Any) -> Any:
    """Join the regions of a column's runs [before, first) and the next one's [first, end); return how many were.

    Runs of one region have one root. A run touches its neighbours in the next column, also at a corner.
    """
    joined, i, j = np.int64(0), before, first
    while i < first and j < end:
        if starts[i] <= stops[j] and starts[j] <= stops[i]:
            one, other = _root(parent, i), _root(parent, j)
            if one != other:
                parent[max(one, other)] = min(one, other)
                joined += 1
        if stops[i] < stops[j]:
            i += 1
        else:
            j += 1
    return joined


_LENGTHS: Final = target(types.int64, 1)


@njit(
    types.void(source(types.uint8, 1), source(types.int64, 1), types.int64, *[_LENGTHS] * 5),
    **OPTIONS,
)
def _regions(text: Any, ends: Any, height: Any, starts: Any, stops: Any, parent: Any, areas: Any, islands: Any) -> None:
    """Write area and regions of each mask; counts are written as differences to the last but one."""
    p = np.int64(0)
    for mask in range(ends.size):
        n, last, before, at, column = 0, np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        previous, first, used, joined = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        while p < ends[mask]:
            value, p = next_number(text, p, ends[mask])
            if n > 2:
                value += before
            before, last = last, value
            stop = at + value
            if n & 1:
                areas[mask] += value
            while at < stop:
                if at >= column + height:
                    joined += _join(starts, stops, parent, previous, first, used)
                    previous, first = first, used
                    column += height
                    if at >= column + height:
                        previous, column = used, at - at % height
                to = min(stop, column + height) if n & 1 else stop
                if n & 1:
                    starts[used], stops[used], parent[used] = at - column, to - column, used
                    used += 1
                at = to
            n += 1
        islands[mask] = used - joined - _join(starts, stops, parent, previous, first, used)


def regions(masks: Sequence[bytes], height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the set pixels of masks and their regions, pixels that touch, also at a corner; both int64 (N,).

    `masks` are COCO's compressed counts, which are taken to be right.
    """
    text, ends = np.frombuffer(b"".join(masks), np.uint8), np.cumsum([len(mask) for mask in masks], dtype=np.int64)
    # A mask has at most so many runs, as each column that a run reaches begins another one.
    starts, stops, parent = np.empty((3, width + max(map(len, masks), default=0)), np.int64)
    areas, islands = np.zeros((2, len(masks)), np.int64)
    _regions(text, ends, height, starts, stops, parent, areas, islands)
    return areas, islands


def _check_total(total: int, height: int, width: int) -> None:
    if total != height * width:
        raise ValueError(f"the counts cover {total} pixels; a {height} x {width} mask has {height * width}")
