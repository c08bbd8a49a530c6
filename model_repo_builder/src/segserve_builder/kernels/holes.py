"""Filling of the holes that the classes of a label map enclose, found on runs as regions are."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.regions import chosen_labels, flatten, link_rows, row_runs

if TYPE_CHECKING:
    from segserve_builder.kernels.regions import Connectivity

ANY_AREA: Final = np.iinfo(np.int32).max


@njit(**OPTIONS)
def _rows_of_classes(label: Any, row_first: Any, size: Any) -> Any:
    """Return the first row of each label, and the last; the first is the number of rows if the label is absent."""
    h = row_first.shape[0] - 1
    first, last = np.full(size, h, np.int64), np.full(size, -1, np.int64)
    for y in range(h):
        for i in range(row_first[y], row_first[y + 1]):
            value = label[i]
            if first[value] > y:  # a branch that is hardly ever taken: a minimum would wait for the one before
                first[value] = y
            last[value] = y
    return first, last


@njit(**OPTIONS)
def _others(start: Any, stop: Any, label: Any, first: Any, last: Any, value: Any, runs: Any, n: Any) -> Any:
    """Append the runs of pixels that are not `value` among the runs [first, last) of a row; return their number."""
    begin, end, same = runs
    before = -1
    for run in range(first, last):
        i = np.uint32(run)
        if label[i] != value:
            n -= before == start[i]  # it goes on where the last one ended
            m = np.uint32(n)
            begin[m] = begin[m] if before == start[i] else start[i]
            end[m], same[m] = stop[i], 0
            before = stop[i]
            n += 1
    return n


@njit(**OPTIONS)
def _claim(
    start: Any, label: Any, row_first: Any, y0: Any, y1: Any, w: Any, value: Any, runs: Any, row_other: Any,
    parent: Any, max_area: Any, outermost: Any, best: Any, fill: Any,
) -> Any:  # fmt: skip
    """Note for the runs within holes of `value` in the rows [y0, y1) that they are, where no better hole has them."""
    begin, end, _ = runs
    n = row_other[y1]
    area = flatten(begin, end, parent, n)
    for y in range(y0, y1):
        outer_row = y == y0 or y == y1 - 1
        for run in range(row_other[y], row_other[y + 1]):
            k = np.uint32(run)
            if outer_row or begin[k] == 0 or end[k] == w:
                area[parent[k]] = 0  # it reaches the edge, or a row without the class
    for y in range(y0, y1):
        k = np.uint32(row_other[y])
        for run in range(row_first[y], row_first[y + 1]):
            i = np.uint32(run)
            if label[i] == value:
                continue
            k += np.uint32(start[i] >= end[k])
            size = area[parent[k]]
            if 0 < size <= max_area and (best[i] == 0 or (size > best[i] if outermost else size < best[i])):
                best[i], fill[i] = size, value


def _fill(labels: Any, chosen: Any, reach: Any, max_area: Any, everything: Any) -> Any:
    h, w = labels.shape
    flat = labels.reshape(-1)
    size = h * w + 1
    start, stop, label = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, labels.dtype)
    row_first = np.zeros(h + 1, np.int64)
    n = 0
    for y in range(h):
        row_first[y] = n
        n = row_runs(flat, y * w, w, start, stop, label, n, True)
    row_first[h] = n
    runs = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.uint8)
    parent, row_other = np.empty(n, np.uint32), np.zeros(h + 1, np.int64)
    best, fill = np.zeros(n, np.int32), np.empty(n, labels.dtype)
    first_row, last_row = _rows_of_classes(label, row_first, chosen.shape[0])
    for value in range(1, chosen.shape[0]):
        y0, y1 = first_row[value], last_row[value] + 1
        if not chosen[value] or y1 - y0 < 3:
            continue
        m = 0
        for y in range(y0, y1):
            row_other[y] = m
            m = _others(start, stop, label, row_first[y], row_first[y + 1], value, runs, m)
            link_rows(runs[0], runs[1], runs[2], parent, row_other[max(y - 1, y0)], row_other[y], m, reach)
        row_other[y1] = m
        _claim(
            start, label, row_first, y0, y1, w, value, runs, row_other, parent, max_area, everything, best, fill
        )  # fmt: skip
    for y in range(h):
        for i in range(row_first[y], row_first[y + 1]):
            if best[i] and (everything or label[i] == 0):
                change = label[i] ^ fill[i]  # not plain stores: they would become calls of memset, too slow for a few
                for x in range(y * w + start[i], y * w + stop[i]):
                    flat[x] ^= change


_fill_compiled = njit(
    [
        types.void(target(element, 2), source(types.boolean, 1), types.int64, types.int64, types.boolean)
        for element in (types.uint8, types.uint16)
    ],
    **OPTIONS,
)(_fill)


def fill_holes(
    labels: NDArray[Any],
    connectivity: Connectivity,
    max_area: int | None = None,
    everything: bool = False,
    classes: Collection[int] | None = None,
) -> NDArray[Any]:
    """Return a copy of `labels`, uint8 or uint16 shaped (H, W), with the holes of every non-zero label filled.

    A hole of a class is a region of pixels of other classes that does not reach the edge of the image. It is also
    connected by corners if the class, with `connectivity` 4, is connected only by edges, and vice versa. Holes of more
    than `max_area` pixels stay, and so do holes of labels that are not among `classes`, if they are given.

    Pixels of label 0 become the class of the smallest such hole that they lie in; with `everything` all pixels do,
    and of the largest. Among equally large ones, the lowest label's wins.
    """
    chosen = chosen_labels(labels.dtype, classes)
    filled = packed(labels, labels.dtype, 2).copy()
    if filled.size:
        limit = ANY_AREA if max_area is None else min(max_area, ANY_AREA)
        _fill_compiled(filled, chosen, 1 if connectivity == 4 else 0, limit, everything)
    return filled
