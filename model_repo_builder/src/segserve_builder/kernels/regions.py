"""Connected regions of equal label, found on runs with union-find, and the removal of unwanted regions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import clear64, differ64, lowest_bit
from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

Connectivity = Literal[4, 8]
LABELS: Final = (np.uint8, np.uint16)
ONE: Final = np.uint32(1)


@njit(**OPTIONS)
def row_runs(flat: Any, row: Any, w: Any, start: Any, stop: Any, label: Any, n: Any, background: Any) -> Any:
    """Append the runs of equal label of a row, runs of label 0 only with `background`; return the number of runs.

    The arrays need room for one run more than there are.
    """
    value = flat[row]
    start[n], label[n] = 0, value
    x = 1
    while x + 64 <= w:
        bits = differ64(flat, row + x, row + x - 1)
        while bits:
            q = x + lowest_bit(bits)
            bits &= bits - 1
            stop[n] = q
            n += (value != 0) | background  # written anyway, counted only if needed: there is no branch to miss
            value = flat[row + q]
            start[n], label[n] = q, value
        x += 64
    while x < w:
        if flat[row + x] != value:
            stop[n] = x
            n += (value != 0) | background
            value = flat[row + x]
            start[n], label[n] = x, value
        x += 1
    stop[n] = w
    return n + ((value != 0) | background)


@njit(**OPTIONS)
def link_rows(start: Any, stop: Any, label: Any, parent: Any, first: Any, last: Any, n: Any, reach: Any) -> Any:
    """Join the runs [last, n) of a row with those [first, last) of the row above that touch and have their label.

    The root of a region is its first run. Runs count in uint32, which spares numba's test for negative indices.
    """
    i, above = np.uint32(first), np.uint32(last)
    for run in range(last, n):
        j = np.uint32(run)
        own = j
        parent[j] = j
        left, right = np.int32(start[j] - reach), np.int32(stop[j] + reach)
        while i < above and stop[i] <= left:
            i += ONE
        k = i
        while k < above and start[k] < right:
            if label[k] == label[j]:
                root = np.uint32(parent[k])
                while parent[root] != root:
                    parent[root] = parent[parent[root]]
                    root = np.uint32(parent[root])
                low, high = min(root, own), max(root, own)
                parent[high] = low
                parent[k] = low
                own = low
            k += ONE


@njit(**OPTIONS)
def flatten(start: Any, stop: Any, parent: Any, n: Any) -> Any:
    """Point every run at its root; return the areas of regions, at their roots."""
    area = np.zeros(n, np.int32)
    for run in range(n):
        i = np.uint32(run)
        root = parent[parent[i]]
        parent[i] = root
        area[root] += np.int32(stop[i] - start[i])
    return area


@njit(**OPTIONS)
def _unwanted(label: Any, parent: Any, area: Any, chosen: Any, min_area: Any) -> Any:
    """Return which regions go, at their roots: small ones or, without a least area, all but each label's largest."""
    gone = np.zeros(area.shape[0], np.bool_)
    if min_area > 0:
        for i in range(area.shape[0]):
            gone[i] = (area[i] < min_area) & chosen[label[i]]
        return gone
    largest = np.full(chosen.shape[0], -1, np.int64)
    for i in range(area.shape[0]):
        if parent[i] == i and chosen[label[i]]:
            best = largest[label[i]]
            if best >= 0 and area[i] <= area[best]:
                gone[i] = True
            else:
                largest[label[i]] = i
                if best >= 0:
                    gone[best] = True
    return gone


@njit(**OPTIONS)
def _clear_row(flat: Any, row: Any, w: Any, edges: Any) -> Any:
    """Set pixels between each two edges to 0, and all edges back; bit x % 64 of edges[x // 64] is an edge before x."""
    inside = np.int64(0)
    for k in range(edges.shape[0]):
        bits = edges[k]
        if bits == 0 and inside == 0:
            continue
        edges[k] = 0
        for shift in (1, 2, 4, 8, 16, 32):  # each bit becomes the parity of the edges up to it
            bits ^= bits << shift
        bits ^= inside
        inside = bits >> 63
        if 64 * k + 64 <= w:
            clear64(flat, row + 64 * k, bits)
        else:
            for x in range(64 * k, w):
                if bits & 1:
                    flat[row + x] = 0
                bits >>= 1


@njit(**OPTIONS)
def _clear(flat: Any, w: Any, start: Any, stop: Any, parent: Any, row_first: Any, gone: Any) -> Any:
    edges = np.zeros(w // 64 + 1, np.int64)
    for y in range(row_first.shape[0] - 1):
        any_gone = np.int64(0)
        for run in range(row_first[y], row_first[y + 1]):
            i = np.uint32(run)
            bit = np.int64(gone[parent[i]])
            any_gone |= bit
            a, b = np.uint32(start[i]), np.uint32(stop[i])
            edges[a >> np.uint32(6)] ^= bit << np.int64(a & np.uint32(63))
            edges[b >> np.uint32(6)] ^= bit << np.int64(b & np.uint32(63))
        if any_gone:
            _clear_row(flat, y * w, w, edges)


def _drop(labels: Any, chosen: Any, min_area: Any, reach: Any) -> Any:
    h, w = labels.shape
    flat = labels.reshape(-1)
    start, stop, parent = np.empty(h * w + 1, np.int32), np.empty(h * w + 1, np.int32), np.empty(h * w + 1, np.uint32)
    label = np.empty(h * w + 1, labels.dtype)
    row_first = np.zeros(h + 1, np.int64)
    n = 0
    for y in range(h):
        row_first[y] = n
        n = row_runs(flat, y * w, w, start, stop, label, n, False)
        link_rows(start, stop, label, parent, row_first[max(y - 1, 0)], row_first[y], n, reach)
    row_first[h] = n
    area = flatten(start, stop, parent, n)
    _clear(flat, w, start, stop, parent, row_first, _unwanted(label, parent, area, chosen, min_area))


_drop_compiled = njit(
    [
        types.void(target(element, 2), source(types.boolean, 1), types.int64, types.int64)
        for element in (types.uint8, types.uint16)
    ],
    **OPTIONS,
)(_drop)


def drop_small(
    labels: NDArray[Any], min_area: int, connectivity: Connectivity, classes: Collection[int] | None = None
) -> NDArray[Any]:
    """Return a copy of `labels` with every region of equal non-zero label smaller than `min_area` pixels set to 0.

    `labels` is uint8 or uint16 shaped (H, W); a mask is a label map of 0 and 1. Only regions of the labels `classes`
    go, if they are given.
    """
    return _without(labels, max(min_area, 1), connectivity, classes)


def keep_largest(
    labels: NDArray[Any], connectivity: Connectivity, classes: Collection[int] | None = None
) -> NDArray[Any]:
    """Return a copy of `labels` with all regions of each non-zero label but its largest set to 0.

    Among equally large ones, the one whose first pixel comes first, row by row, stays. Otherwise as `drop_small`.
    """
    return _without(labels, 0, connectivity, classes)


def chosen_labels(dtype: np.dtype[Any], classes: Collection[int] | None) -> NDArray[np.bool_]:
    """Return for every value of a label type whether it is among the classes; 0 never is, the others are for None.

    Raises `ValueError` for a type that labels do not have. The result is bool (256,) or (65536,).
    """
    if dtype not in LABELS:
        raise ValueError(f"labels are {dtype}; uint8 and uint16 are allowed")
    chosen = np.full(256**dtype.itemsize, classes is None)
    if classes is not None:
        chosen[[label for label in classes if 0 <= label < len(chosen)]] = True
    chosen[0] = False
    return chosen


@njit([types.void(source(element, 2), target(types.boolean, 1)) for element in (types.uint8, types.uint16)], **OPTIONS)
def _mark(labels: Any, present: Any) -> Any:
    flat = labels.reshape(-1)
    for i in range(flat.shape[0]):
        present[flat[i]] = True


def present_labels(labels: NDArray[Any]) -> list[int]:
    """Return the non-zero labels of a label map, uint8 or uint16 shaped (H, W), rising."""
    present = np.zeros_like(chosen_labels(labels.dtype, None))
    _mark(packed(labels, labels.dtype, 2), present)
    return [int(label) for label in np.flatnonzero(present[1:]) + 1]


def _without(
    labels: NDArray[Any], min_area: int, connectivity: Connectivity, classes: Collection[int] | None
) -> NDArray[Any]:
    chosen = chosen_labels(labels.dtype, classes)
    cleaned = packed(labels, labels.dtype, 2).copy()
    if cleaned.size:
        _drop_compiled(cleaned, chosen, min_area, 1 if connectivity == 8 else 0)
    return cleaned
