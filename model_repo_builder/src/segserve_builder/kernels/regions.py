"""Connected regions of equal label, found on runs with union-find, and the removal of the small ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numba import njit, types

from segserve_builder.kernels.bits import differ64, lowest_bit
from segserve_builder.kernels.compiled import OPTIONS, packed, target

if TYPE_CHECKING:
    from numpy.typing import NDArray


@njit(**OPTIONS)
def _root(parent: Any, i: Any) -> Any:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = np.int64(parent[i])
    return i


@njit(**OPTIONS)
def _link(start: Any, stop: Any, label: Any, parent: Any, i: Any, j: Any, reach: Any) -> Any:
    """Join run i with run j of the next row where they touch and have the same label."""
    if label[i] == label[j] and start[i] < stop[j] + reach and start[j] < stop[i] + reach:
        a, b = _root(parent, i), _root(parent, j)
        if a < b:
            parent[b] = a
        else:
            parent[a] = b


@njit(**OPTIONS)
def _link_rows(start: Any, stop: Any, label: Any, parent: Any, i: Any, j: Any, n: Any, reach: Any) -> Any:
    """Join the runs [i, j) of one row with the runs [j, n) of the next."""
    above = j
    while i < above and j < n:
        _link(start, stop, label, parent, i, j, reach)
        if stop[i] < stop[j]:
            i += 1
        elif stop[j] < stop[i]:
            j += 1
        else:  # both end here: runs of other labels may follow at once, and touch across the corner
            if j + 1 < n:
                _link(start, stop, label, parent, i, j + 1, reach)
            if i + 1 < above:
                _link(start, stop, label, parent, i + 1, j, reach)
            i += 1
            j += 1


@njit(**OPTIONS)
def _close(flat: Any, row: Any, first: Any, x: Any, start: Any, stop: Any, label: Any, parent: Any, n: Any) -> Any:
    """Append the run [first, x) of a row unless its label is 0; return the number of runs."""
    value = flat[row + first]
    if value:
        start[n], stop[n], label[n], parent[n] = first, x, value, n
        n += 1
    return n


@njit(**OPTIONS)
def _erase_small(flat: Any, w: Any, start: Any, stop: Any, parent: Any, row_first: Any, min_area: Any) -> Any:
    n = row_first[-1]
    area = np.zeros(n, np.int64)
    for i in range(n):
        root = _root(parent, i)
        parent[i] = root
        area[root] += stop[i] - start[i]
    for y in range(row_first.shape[0] - 1):
        for i in range(row_first[y], row_first[y + 1]):
            if area[parent[i]] < min_area:
                for x in range(y * w + start[i], y * w + stop[i]):
                    flat[x] = 0


def _drop_small(labels: Any, min_area: Any, reach: Any) -> Any:
    h, w = labels.shape
    flat = labels.reshape(-1)
    start, stop, parent = np.empty(h * w, np.int32), np.empty(h * w, np.int32), np.empty(h * w, np.int32)
    label = np.empty(h * w, labels.dtype)
    row_first = np.zeros(h + 1, np.int64)
    n = 0
    for y in range(h):
        row_first[y] = n
        row = y * w
        first, x = 0, 1
        while x + 64 <= w:
            bits = differ64(flat, row + x, row + x - 1)
            while bits:
                q = x + lowest_bit(bits)
                bits &= bits - 1
                n = _close(flat, row, first, q, start, stop, label, parent, n)
                first = q
            x += 64
        while x < w:
            if flat[row + x] != flat[row + x - 1]:
                n = _close(flat, row, first, x, start, stop, label, parent, n)
                first = x
            x += 1
        n = _close(flat, row, first, w, start, stop, label, parent, n)
        if y:
            _link_rows(start, stop, label, parent, row_first[y - 1], row_first[y], n, reach)
    row_first[h] = n
    _erase_small(flat, w, start, stop, parent, row_first, min_area)


_drop_small_compiled = njit(
    [types.void(target(element, 2), types.int64, types.int64) for element in (types.uint8, types.uint16)],
    **OPTIONS,
)(_drop_small)


def drop_small(labels: NDArray[Any], min_area: int, connectivity: Literal[4, 8]) -> NDArray[Any]:
    """Return a copy of `labels` with every region of equal non-zero label smaller than `min_area` pixels set to 0.

    `labels` is uint8 or uint16 shaped (H, W); a mask is a label map of 0 and 1.
    """
    if labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels are {labels.dtype}; uint8 and uint16 are allowed")
    cleaned = packed(labels, labels.dtype, 2).copy()
    if cleaned.size:
        _drop_small_compiled(cleaned, min_area, 1 if connectivity == 8 else 0)
    return cleaned
