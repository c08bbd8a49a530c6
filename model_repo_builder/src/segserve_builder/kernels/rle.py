"""COCO run-length encoding of masks: bitmaps to compressed counts, from a window where that is enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import differ64, lowest_bit
from segserve_builder.kernels.compiled import OPTIONS, packed, source

MAX_CHARACTERS = 7
"""A count takes at most this many characters: 5 bits each, and a sign, of a difference of two int32."""

DENSE = 64
"""A mask in which more than one pixel of so many differs from the one above has no long runs to profit from."""


@dataclass(frozen=True, slots=True)
class MaskWindow:
    """A part of a mask: uint8 0/1, shaped (h, w), whose first pixel is at row `top`, column `left` of the mask."""

    bitmap: NDArray[np.uint8]
    top: int
    left: int


@njit(**OPTIONS)
def add_run(counts: Any, n: Any, last: Any, start: Any, stop: Any) -> Any:
    """Append the run [start, stop) of set pixels, merged with the one before where they touch; return (n, last)."""
    if n > 0 and start == last:
        counts[n - 1] += stop - start
    else:
        counts[n] = start - last
        counts[n + 1] = stop - start
        n += 2
    return n, stop


@njit(**OPTIONS)
def write_string(counts: Any, n: Any, out: Any, p: Any) -> Any:
    """Write n counts at out[p:] as COCO does, five bits a character, the fourth on as differences; return the end."""
    for i in range(n):
        value = np.int64(counts[i])
        if i > 2:
            value -= counts[i - 2]
        while value < -16 or value > 15:
            out[p] = (value & 31) + 80
            value >>= 5
            p += 1
        out[p] = (value & 31) + 48
        p += 1
    return p


@njit(**OPTIONS)
def with_room(out: Any, p: Any, more: Any) -> Any:
    """Return `out`, or a larger array that begins with out[:p], with room for `more` bytes after p."""
    if p + more <= out.shape[0]:
        return out
    larger = np.empty(2 * (p + more), np.uint8)
    larger[:p] = out[:p]
    return larger


@njit(**OPTIONS)
def changes_below(flat: Any, h: Any, w: Any, xs: Any, ys: Any, per_column: Any, n: Any) -> Any:
    """List the pixels of rows 1 on that differ from the one above, after n others; return how many there are then.

    `flat` is uint8 (h * w). Row by row, each is written to xs, ys and counted in its column. Where a row might not fit
    into xs, -1 is returned.
    """
    for y in range(1, h):
        if n + w > xs.shape[0]:
            return -1
        row = y * w
        x = 0
        while x < w and w >= 64:
            start = min(x, w - 64)  # the last 64 pixels may have been looked at in part
            bits = differ64(flat, row + start, row + start - w) >> (x - start) << (x - start)
            while bits:
                q = start + lowest_bit(bits)
                bits &= bits - 1
                xs[n], ys[n] = q, y
                per_column[q] += 1
                n += 1
            x += 64
        while x < w:
            if flat[row + x] != flat[row + x - w]:
                xs[n], ys[n] = x, y
                per_column[x] += 1
                n += 1
            x += 1
    return n


@njit(**OPTIONS)
def by_column(xs: Any, ys: Any, n: Any, per_column: Any, rows: Any) -> None:
    """Sort n changes by column, their rows into `rows`; per_column[x] becomes the end of column x."""
    total = 0
    for x in range(per_column.shape[0]):
        here = per_column[x]
        per_column[x] = total
        total += here
    for e in range(n):
        x = xs[e]
        rows[per_column[x]] = ys[e]
        per_column[x] += 1


@njit(**OPTIONS)
def _changes(bitmap: Any, xs: Any, ys: Any, per_column: Any) -> Any:
    """List the pixels that differ from the one above, none of which is set above the first row."""
    h, w = bitmap.shape
    flat = bitmap.reshape(-1)
    n = 0
    for x in range(w):
        if flat[x]:
            xs[n], ys[n] = x, 0
            per_column[x] += 1
            n += 1
    return changes_below(flat, h, w, xs, ys, per_column, n)


@njit(**OPTIONS)
def _sparse_counts(bitmap: Any, top: Any, left: Any, height: Any) -> Any:
    """Return counts with room for one more, how many they are, and the pixels that they cover; -1 where too many."""
    h, w = bitmap.shape
    capacity = max(h * w // DENSE, 4 * w) + 1
    xs, ys, rows = np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    per_column = np.zeros(w, np.int32)
    events = _changes(bitmap, xs, ys, per_column) if h * w else 0
    n, last = 0, 0
    first: Any = 0
    if events < 0:
        return np.empty(0, np.int32), -1, last
    by_column(xs, ys, events, per_column, rows)
    counts = np.empty(events + 2 * w + 2, np.int32)
    for x in range(w):
        end = np.int64(per_column[x])
        column = (left + x) * height + top
        for e in range(first, end, 2):
            stop = np.int64(rows[e + 1]) if e + 1 < end else h
            n, last = add_run(counts, n, last, column + rows[e], column + stop)
        first = end
    return counts, n, last


@njit(**OPTIONS)
def _changes_of_row(flat: Any, y: Any, x0: Any, w: Any) -> Any:
    """Set bit k where the pixel x0 + k of row y differs from the one above, of up to 64; above row 0 none is set."""
    wide = min(w - x0, 64)
    row = y * w + x0
    if y > 0 and row + 64 <= flat.shape[0]:
        changes = differ64(flat, row, row - w)
        return changes if wide == 64 else changes & ((np.int64(1) << wide) - 1)
    bits = np.int64(0)
    for k in range(wide):
        above = flat[row + k - w] if y > 0 else np.uint8(0)
        if flat[row + k] != above:
            bits |= np.int64(1) << k
    return bits


@njit(**OPTIONS)
def _transpose(words: Any) -> None:
    """Turn 64 words of 64 bits so that bit r of word c is what bit c of word r was (Hacker's Delight, 7-3)."""
    j, mask = np.int64(32), np.int64(0xFFFFFFFF)
    while j:
        for group in range(0, 64, 2 * j):
            for k in range(group, group + j):
                # The shift brings copies of the sign, which the mask takes away: its upper bits are never set.
                moved = (words[k] >> j ^ words[k + j]) & mask
                words[k] ^= moved << j
                words[k + j] ^= moved
        j >>= 1
        mask ^= mask << j


@njit(**OPTIONS)
def _dense_counts(bitmap: Any, top: Any, left: Any, height: Any) -> Any:
    """Return what `_sparse_counts` does of any mask: its changes are turned to columns 64 x 64 at a time."""
    h, w = bitmap.shape
    flat = bitmap.reshape(-1)
    counts = np.empty((h + 1) * w + 2, np.int32)
    blocks = (h + 63) // 64
    words, columns = np.empty(64, np.int64), np.empty((64, blocks), np.int64)
    n, last = 0, 0
    for x0 in range(0, w, 64):
        for b in range(blocks):
            for r in range(64):
                y = b * 64 + r
                words[r] = _changes_of_row(flat, y, x0, w) if y < h else 0
            _transpose(words)
            columns[:, b] = words
        for c in range(min(w - x0, 64)):
            column = (left + x0 + c) * height + top
            start = -1
            for b in range(blocks):
                bits = columns[c, b]
                while bits:
                    y = b * 64 + lowest_bit(bits)
                    bits &= bits - 1
                    if start < 0:
                        start = y
                    else:
                        n, last = add_run(counts, n, last, column + start, column + y)
                        start = -1
            if start >= 0:
                n, last = add_run(counts, n, last, column + start, column + h)
    return counts, n, last


@njit(
    types.Array(types.uint8, 1, "C")(source(types.uint8, 2), types.int64, types.int64, types.int64, types.int64),
    **OPTIONS,
)
def _encode(bitmap: Any, top: Any, left: Any, height: Any, width: Any) -> Any:
    counts, n, last = _sparse_counts(bitmap, top, left, height)
    if n < 0:
        counts, n, last = _dense_counts(bitmap, top, left, height)
    if last < height * width:
        counts[n] = height * width - last
        n += 1
    out = np.empty(n * MAX_CHARACTERS, np.uint8)
    return out[: write_string(counts, n, out, 0)]


def split(text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[bytes, ...]:
    """Return the strings that lie one after another in `text`; `offsets` int64 (N + 1,) are their ends, from 0 on."""
    joined, ends = text.tobytes(), offsets.tolist()
    return tuple(joined[start:stop] for start, stop in pairwise(ends))


def encode(window: MaskWindow, height: int, width: int) -> bytes:
    """Return COCO's compressed counts of a mask of `height` x `width` that is 0 outside the window.

    Raises `ValueError` if the window does not lie within the mask.
    """
    bitmap = packed(window.bitmap, np.uint8, 2)
    h, w = bitmap.shape
    if not (0 <= window.top <= height - h and 0 <= window.left <= width - w):
        raise ValueError(f"a {h} x {w} window at ({window.top}, {window.left}) leaves the {height} x {width} mask")
    counts: bytes = _encode(bitmap, window.top, window.left, height, width).tobytes()
    return counts


def encode_bitmap(bitmap: NDArray[np.uint8]) -> bytes:
    """Return COCO's compressed counts of a whole mask, uint8 0/1 shaped (H, W)."""
    return encode(MaskWindow(bitmap, 0, 0), *bitmap.shape)
