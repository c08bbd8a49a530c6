"""Mask queries at an image's own pixels: which query wins each, without a full-resolution value of any.

Bilinear interpolation is a convex combination: within a cell a query whose largest weighted corner is below another's
smallest can win nowhere, and one whose corners are all above a threshold is above it everywhere. Only where that does
not decide are pixels evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import multiply_add
from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32
ONE: Final = F(1)
BELOW: Final = F(1 - 1e-6)
"""Room for the rounding of an interpolation, so that bounds never contradict the pixels' own values."""
ABOVE: Final = F(1 + 1e-6)
MOST: Final = 65_535
DENSE_CELL: Final = 1.0
DENSE_PIXEL: Final = 0.3
SCAN: Final = 1.5
PAIR: Final = 25.0
"""Cost of the two ways through a row of cells, in nanoseconds where they were measured.

One query at all pixels: DENSE_CELL a column, DENSE_PIXEL a pixel. One query in one cell: SCAN to look at its bounds,
PAIR to evaluate it.
"""


@njit(**OPTIONS)
def _sample_row(cells: Any, cell: Any, part: Any, out: Any) -> None:
    """Write one row of cells at the columns of the pixels; operations are rounded as torch's are."""
    last = cells.shape[0] - 1
    for x in range(out.shape[0]):
        j, p = cell[x], part[x]
        out[x] = multiply_add(ONE - p, cells[j], p * cells[min(j + 1, last)])


@njit(**OPTIONS)
def _blend_rows(upper: Any, lower: Any, down: Any, out: Any) -> None:
    for x in range(out.shape[0]):
        out[x] = multiply_add(ONE - down, upper[x], down * lower[x])


_CELL: Final = target(types.int32, 1)
_PART: Final = target(types.float32, 1)


@njit(types.void(source(types.float32, 3), _CELL, _PART, _CELL, _PART, target(types.float32, 3)), **OPTIONS)
def _resample(values: Any, y_cell: Any, y_part: Any, x_cell: Any, x_part: Any, out: Any) -> None:
    last = values.shape[1] - 1
    rows, held = np.empty((2, out.shape[2]), np.float32), np.empty(2, np.int64)
    for k in range(values.shape[0]):
        held[:] = -1
        for y in range(out.shape[1]):
            i = np.int64(y_cell[y])
            i2 = min(i + 1, last)
            for wanted in range(i, i2 + 1):
                if held[wanted & 1] != wanted:
                    _sample_row(values[k, wanted], x_cell, x_part, rows[wanted & 1])
                    held[wanted & 1] = wanted
            _blend_rows(rows[i & 1], rows[i2 & 1], y_part[y], out[k, y])


@njit(**OPTIONS)
def _bounds(probabilities: Any, scores: Any, i: Any, i2: Any, low: Any, high: Any, floor: Any) -> None:
    """Write each query's least and greatest weighted corner of the cells of row i, and the best of the least."""
    w = floor.shape[0]
    floor[:] = F(0)
    for k in range(scores.shape[0]):
        a, b, least, most, score = probabilities[k, i], probabilities[k, i2], low[k], high[k], scores[k]
        for j in range(w - 1):
            least[j] = min(min(a[j], a[j + 1]), min(b[j], b[j + 1])) * score
            most[j] = max(max(a[j], a[j + 1]), max(b[j], b[j + 1])) * score
        least[w - 1], most[w - 1] = min(a[w - 1], b[w - 1]) * score, max(a[w - 1], b[w - 1]) * score
        for j in range(w):
            floor[j] = max(floor[j], least[j])


@njit(**OPTIONS)
def _decide(
    low: Any, high: Any, floor: Any, limit: Any, pixels: Any, alone: Any, number: Any, partly: Any, whole: Any,
    active: Any,
) -> Any:  # fmt: skip
    """Find how many queries may win each cell and one of them, and how many are above the limit in a part of it.

    For each query, `whole` counts the pixels of cells that are all above the limit. Returns the number of queries that
    may win a cell or are above the limit in a part of one, which `active` lists.
    """
    w = floor.shape[0]
    for j in range(w):
        floor[j] *= BELOW
        number[j], alone[j], partly[j] = 0, 0, 0
    n = 0
    for k in range(low.shape[0]):
        least, most = low[k], high[k]
        total, undecided = 0, 0
        for j in range(w):
            may: Any = np.int32(most[j] >= floor[j])
            number[j] += may
            alone[j] = k if may else alone[j]
            all_above: Any = np.int32(least[j] >= limit * ABOVE)
            some: Any = np.int32(most[j] >= limit * BELOW) - all_above
            partly[j] += some
            total += pixels[j] * all_above
            undecided += may + some
        whole[k] = total
        if undecided:
            active[n] = k
            n += 1
    return n


@njit(**OPTIONS)
def _dense_row(
    probabilities: Any, scores: Any, i: Any, i2: Any, ya: Any, yb: Any, y_part: Any, x_cell: Any, x_part: Any,
    limit: Any, active: Any, upper: Any, lower: Any, best: Any, label: Any, areas: Any, above: Any, out: Any,
) -> None:  # fmt: skip
    """Evaluate the active queries at all pixels of a row of cells; the others win none of them."""
    width = best.shape[0]
    for n in range(active.shape[0]):
        _sample_row(probabilities[active[n], i], x_cell, x_part, upper[n])
        _sample_row(probabilities[active[n], i2], x_cell, x_part, lower[n])
    for y in range(ya, yb):
        down = y_part[y]
        for x in range(width):
            best[x], label[x] = F(-1), 0
        for n in range(active.shape[0]):
            k, u, v = active[n], upper[n], lower[n]
            score = scores[k]
            over: Any = 0
            for x in range(width):
                value = multiply_add(ONE - down, u[x], down * v[x]) * score
                over += np.int32(value >= limit)
                o = best[x]
                label[x] = k if value > o else label[x]
                best[x] = value if value > o else o
            above[k] += over
        o = out[y]
        for x in range(width):
            o[x] = label[x]
            areas[label[x]] += 1


@njit(**OPTIONS)
def _contest(
    probabilities: Any, scores: Any, i: Any, i2: Any, j: Any, j2: Any, ya: Any, yb: Any, xa: Any, xb: Any,
    y_part: Any, x_part: Any, low: Any, high: Any, least: Any, limit: Any, fx: Any, fy: Any, best: Any, label: Any,
    areas: Any, above: Any, out: Any,
) -> None:  # fmt: skip
    """Evaluate the pixels of one cell, of the queries that may win it or are above the limit in a part of it."""
    n = 0
    for y in range(ya, yb):
        for x in range(xa, xb):
            fx[n], fy[n], best[n], label[n] = x_part[x], y_part[y], F(-1), 0
            n += 1
    for k in range(scores.shape[0]):
        wins, counts = high[k, j] >= least, high[k, j] >= limit * BELOW and low[k, j] < limit * ABOVE
        if not (wins or counts):
            continue
        mask, score = probabilities[k], scores[k]
        q0, q1, q2, q3 = mask[i, j], mask[i, j2], mask[i2, j], mask[i2, j2]
        over: Any = 0
        for p in range(n):
            a, b = fx[p], fy[p]
            upper = multiply_add(ONE - a, q0, a * q1)
            lower = multiply_add(ONE - a, q2, a * q3)
            v = multiply_add(ONE - b, upper, b * lower) * score
            over += np.int32(v >= limit)
            o = best[p]
            label[p] = k if v > o else label[p]
            best[p] = v if v > o else o
        if counts:
            above[k] += over
    n = 0
    for y in range(ya, yb):
        for x in range(xa, xb):
            out[y, x] = label[n]
            areas[label[n]] += 1
            n += 1


@njit(
    types.void(
        source(types.float32, 3), source(types.float32, 1), types.float32, _PART, _CELL, _CELL, _PART, _CELL,
        target(types.uint16, 2), target(types.int64, 1), target(types.int64, 1),
    ),
    **OPTIONS,
)  # fmt: skip
def _winners(
    probabilities: Any, scores: Any, limit: Any, y_part: Any, y_first: Any, x_cell: Any, x_part: Any, x_first: Any,
    out: Any, areas: Any, above: Any,
) -> None:  # fmt: skip
    queries, h, w = probabilities.shape
    width = out.shape[1]
    low, high = np.empty((queries, w), np.float32), np.empty((queries, w), np.float32)
    floor = np.empty(w, np.float32)
    alone, number, partly = np.empty(w, np.int32), np.empty(w, np.int32), np.empty(w, np.int32)
    whole, active = np.empty(queries, np.int64), np.empty(queries, np.int32)
    size = max(np.diff(x_first).max() * np.diff(y_first).max(), width)
    fx, fy = np.empty(size, np.float32), np.empty(size, np.float32)
    best, label = np.empty(size, np.float32), np.empty(size, np.int32)
    upper, lower = np.empty((queries, width), np.float32), np.empty((queries, width), np.float32)
    row, pixels = np.empty(width, np.uint16), np.empty(w, np.int32)
    for i in range(h):
        i2, ya, yb = min(i + 1, h - 1), y_first[i], y_first[i + 1]
        if ya == yb:
            continue
        for j in range(w):
            pixels[j] = (yb - ya) * (x_first[j + 1] - x_first[j])
        _bounds(probabilities, scores, i, i2, low, high, floor)
        n = _decide(low, high, floor, limit, pixels, alone, number, partly, whole, active)
        cells: Any = 0
        pairs: Any = 0
        for j in range(w):
            contested = np.int32(number[j] > 1) | np.int32(partly[j] > 0)
            cells += contested
            pairs += contested * (number[j] + partly[j])
        dense = n * width * (DENSE_CELL + DENSE_PIXEL * (yb - ya)) < cells * queries * SCAN + pairs * PAIR
        for k in range(queries):
            above[k] += whole[k]
        if dense:
            for q in range(n):
                above[active[q]] -= whole[active[q]]
            _dense_row(
                probabilities, scores, i, i2, ya, yb, y_part, x_cell, x_part, limit, active[:n], upper, lower,
                best[:width], label[:width], areas, above, out,
            )  # fmt: skip
            continue
        for x in range(width):
            row[x] = alone[x_cell[x]]
        for y in range(ya, yb):
            o = out[y]
            for x in range(width):
                o[x] = row[x]
        for j in range(w):
            if number[j] == 1 and not partly[j]:
                areas[alone[j]] += pixels[j]
            elif pixels[j]:
                _contest(
                    probabilities, scores, i, i2, j, min(j + 1, w - 1), ya, yb, x_first[j], x_first[j + 1],
                    y_part, x_part, low, high, floor[j], limit, fx, fy, best, label, areas, above, out,
                )  # fmt: skip


@njit(types.void(target(types.uint16, 2), source(types.uint16, 1)), **OPTIONS)
def _rename(labels: Any, names: Any) -> None:
    flat = labels.reshape(-1)
    for i in range(flat.shape[0]):
        flat[i] = names[flat[i]]


def resample(values: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """Return `values` (K, h, w) sampled bilinearly as torch's `interpolate` does, float32 (K, rows.size, columns.size).

    Raises `ValueError` if the axes reach beyond the values.
    """
    content = _content(values, rows, columns)
    out = np.empty((len(content), rows.size, columns.size), np.float32)
    _resample(content, *rows.positions()[:2], *columns.positions()[:2], out)
    return out


def winners(
    probabilities: NDArray[np.float32], scores: NDArray[np.float32], rows: Axis, columns: Axis, threshold: float
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
    """Return which query has each pixel, how many pixels each has, and in how many it reaches the threshold.

    They are uint16 (rows.size, columns.size), int64 (K,) and int64 (K,). A query's value at a pixel is its score times
    its probability there, interpolated bilinearly; ties go to the first query. `probabilities` (K, h, w) and `scores`
    (K,) are not negative, and K is at least 1. Raises `ValueError` if shapes do not fit.
    """
    content, scores = _content(probabilities, rows, columns), packed(scores, np.float32, 1)
    if len(content) != len(scores) or not 1 <= len(scores) <= MOST:
        raise ValueError(f"{len(content)} masks and {len(scores)} scores; allowed are 1 to {MOST} of both")
    out = np.empty((rows.size, columns.size), np.uint16)
    areas, above = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64)
    vertical, horizontal = rows.positions()[1:], columns.positions()
    _winners(content, scores, F(threshold), *vertical, *horizontal, out, areas, above)
    return out, areas, above


def rename(labels: NDArray[np.uint16], names: NDArray[np.uint16]) -> None:
    """Replace every label, in place, by its name; `labels` are C-contiguous uint16 (H, W).

    Raises `ValueError` if a label has no name.
    """
    if labels.max(initial=0) >= len(names):
        raise ValueError(f"labels up to {labels.max()}; there are {len(names)} names")
    _rename(labels, packed(names, np.uint16, 1))


def _content(values: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """Return the cells that the axes sample."""
    if values.ndim != 3 or rows.first + rows.cells > values.shape[1] or columns.first + columns.cells > values.shape[2]:
        raise ValueError(f"values of shape {values.shape} do not cover {rows} and {columns}")
    y, x = slice(rows.first, rows.first + rows.cells), slice(columns.first, columns.first + columns.cells)
    return packed(values[:, y, x], np.float32, 3)
