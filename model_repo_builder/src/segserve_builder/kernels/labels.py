"""Exact argmax of bilinearly upsampled logits, without the upsampled tensor.

Bilinear interpolation is a convex combination: a cell whose four corners have the same argmax is constant, and in the
others only a class whose largest corner reaches the best smallest corner can win.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.probability import LOG2_E, blend, check_covers, exp2

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32
CHUNK: Final = 2048


@njit(**OPTIONS)
def _argmax_row(logits: Any, y: Any, left: Any, best: Any, label: Any, out: Any) -> Any:
    """Write the argmax over classes of logits[:, y, left:left + len(out)]; ties go to the first class."""
    for x0 in range(0, out.shape[0], CHUNK):
        m = min(CHUNK, out.shape[0] - x0)
        best[:m] = logits[0, y, left + x0 : left + x0 + m]
        label[:] = 0  # 32-bit labels, narrowed below, keep the loop SIMD on AVX2
        for k in range(1, logits.shape[0]):
            row = logits[k, y, left + x0 : left + x0 + m]
            for x in range(m):
                v, b = row[x], best[x]
                label[x] = k if v > b else label[x]
                best[x] = v if v > b else b
        o = out[x0 : x0 + m]
        for x in range(m):
            o[x] = label[x]


@njit(**OPTIONS)
def _argmax_cells(logits: Any, top: Any, left: Any, out: Any) -> Any:
    best, label = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int32)
    for y in range(out.shape[0]):
        _argmax_row(logits, top + y, left, best, label, out[y])


@njit(**OPTIONS)
def _flatten(ya: Any, yb: Any, xa: Any, xb: Any, before: Any, y_part: Any, x_part: Any, fy: Any, fx: Any) -> Any:
    """Write the parts of a cell's pixels, unless the cell at `before` has equal parts (-1: there is no such cell)."""
    same = before >= 0
    for x in range(xa, xb):
        same = same and x_part[x] == x_part[before + x - xa]
    if same:
        return
    n = 0
    for y in range(ya, yb):
        for x in range(xa, xb):
            fx[n], fy[n] = x_part[x], y_part[y]
            n += 1


@njit(**OPTIONS)
def _mixed_cell(
    above: Any, below: Any, j: Any, j2: Any, ya: Any, yb: Any, xa: Any, xb: Any,
    fx: Any, fy: Any, best: Any, label: Any, corner: Any, candidates: Any, out: Any,
) -> Any:  # fmt: skip
    """Evaluate the classes that can win on the flattened pixels of one cell."""
    n = (yb - ya) * (xb - xa)
    floor = F(-np.inf)
    for k in range(above.shape[0]):
        q0, q1, q2, q3 = above[k, j], above[k, j2], below[k, j], below[k, j2]
        corner[k, 0], corner[k, 1], corner[k, 2], corner[k, 3] = q0, q1, q2, q3
        floor = max(floor, min(min(q0, q1), min(q2, q3)))
    surviving = 0
    for k in range(above.shape[0]):
        candidates[surviving] = k
        surviving += max(max(corner[k, 0], corner[k, 1]), max(corner[k, 2], corner[k, 3])) >= floor
    candidates[surviving] = candidates[surviving - 1]  # classes are taken in pairs
    for p in range(n):
        best[p], label[p] = F(-np.inf), 0
    for c in range(0, surviving, 2):
        k, m = candidates[c], candidates[c + 1]
        q0, q1, q2, q3 = corner[k, 0], corner[k, 1], corner[k, 2], corner[k, 3]
        r0, r1, r2, r3 = corner[m, 0], corner[m, 1], corner[m, 2], corner[m, 3]
        for p in range(n):
            a, b = fx[p], fy[p]
            v = blend(blend(q0, q1, a), blend(q2, q3, a), b)
            u = blend(blend(r0, r1, a), blend(r2, r3, a), b)
            o, first = best[p], label[p]
            first = k if v > o else first
            o = v if v > o else o
            label[p] = m if u > o else first
            best[p] = u if u > o else o
    n = 0
    for y in range(ya, yb):
        for x in range(xa, xb):
            out[y, x] = label[n]
            n += 1


@njit(**OPTIONS)
def _mark_mixed(a: Any, b: Any, mixed: Any) -> Any:
    """Mark the cells whose corners, in these two rows of labels, are not all of one class; return whether any is."""
    last, some = a.shape[0] - 1, np.int64(0)
    for j in range(last):
        mixed[j] = (a[j] ^ a[j + 1]) | (a[j] ^ b[j]) | (a[j] ^ b[j + 1])
    mixed[last] = a[last] ^ b[last]
    for j in range(a.shape[0]):
        some |= mixed[j]
    return some != 0


@njit(**OPTIONS)
def _hold_row(logits: Any, y: Any, left: Any, held: Any) -> Any:
    """Copy a row of all classes: side by side, the corners of a cell do not push each other out of the cache."""
    for k in range(logits.shape[0]):
        row, copy = logits[k, y, left : left + held.shape[1]], held[k]
        for x in range(held.shape[1]):
            copy[x] = row[x]


def _upsample_argmax(
    logits: Any,
    top: Any,
    left: Any,
    y_part: Any,
    y_first: Any,
    x_cell: Any,
    x_part: Any,
    x_first: Any,
    out: Any,
) -> Any:
    h, w, classes = y_first.shape[0] - 1, x_first.shape[0] - 1, logits.shape[0]
    low = np.empty((h, w), out.dtype)
    _argmax_cells(logits, top, left, low)
    row, mixed = np.empty(out.shape[1], out.dtype), np.empty(w, out.dtype)
    size = np.diff(x_first).max() * np.diff(y_first).max()
    fx, fy = np.empty(size, np.float32), np.empty(size, np.float32)
    best, label = np.empty(size, np.float32), np.empty(size, np.int32)
    corner, candidates = np.empty((classes, 4), np.float32), np.empty(classes + 2, np.int32)
    rows, held = np.empty((2, classes, w), np.float32), -1
    for i in range(h):
        i2, ya, yb = min(i + 1, h - 1), y_first[i], y_first[i + 1]
        if ya == yb:
            continue
        for x in range(row.shape[0]):
            row[x] = low[i, x_cell[x]]
        for y in range(ya, yb):
            o = out[y]
            for x in range(row.shape[0]):
                o[x] = row[x]
        if not _mark_mixed(low[i], low[i2], mixed):
            continue
        if held != i:
            _hold_row(logits, top + i, left, rows[i & 1])
        if i2 != i:
            _hold_row(logits, top + i2, left, rows[i2 & 1])
        held = i2
        before, wide = -1, 0
        for j in range(w):
            if mixed[j]:
                xa, xb = x_first[j], x_first[j + 1]
                _flatten(ya, yb, xa, xb, before if xb - xa == wide else -1, y_part, x_part, fy, fx)
                before, wide = xa, xb - xa
                _mixed_cell(
                    rows[i & 1], rows[i2 & 1], j, min(j + 1, w - 1), ya, yb, xa, xb,
                    fx, fy, best, label, corner, candidates, out,
                )  # fmt: skip


_LABELS: Final = (types.uint8, types.uint16)
_LOGITS: Final = source(types.float32, 3)
_argmax_compiled = njit(
    [types.void(_LOGITS, types.int64, types.int64, target(element, 2)) for element in _LABELS], **OPTIONS
)(lambda logits, top, left, out: _argmax_cells(logits, top, left, out))
_CELL: Final = target(types.int32, 1)
_PART: Final = target(types.float32, 1)
_upsample_compiled = njit(
    [
        types.void(_LOGITS, types.int64, types.int64, _PART, _CELL, _CELL, _PART, _CELL, target(element, 2))
        for element in _LABELS
    ],
    **OPTIONS,
)(_upsample_argmax)


def label_map(logits: NDArray[np.float32], rows: Axis, columns: Axis, threshold: float = 0.0) -> NDArray[Any]:
    """Return each pixel's class, (rows.size, columns.size): uint8 for up to 256 classes, else uint16.

    `logits` (C, h, w) is finite. Ties go to the first class. A single channel is the logit of the second class of
    two, which wins above `threshold`. The answer equals the argmax of torch's bilinear `interpolate`.
    """
    check_covers(logits.shape, rows, columns)
    if rows.is_crop and columns.is_crop:
        return _crop_labels(logits, rows, columns, threshold)
    if logits.shape[0] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits - F(threshold)])
    out = np.empty((rows.size, columns.size), _label_type(len(logits)))
    vertical, horizontal = rows.positions()[1:], columns.positions()
    _upsample_compiled(packed(logits, np.float32, 3), rows.first, columns.first, *vertical, *horizontal, out)
    return out


def _label_type(classes: int) -> type[np.uint8 | np.uint16]:
    return np.uint8 if classes <= 256 else np.uint16


def _crop_labels(logits: NDArray[np.float32], rows: Axis, columns: Axis, threshold: float) -> NDArray[Any]:
    if logits.shape[0] == 1:
        y, x = slice(rows.first, rows.first + rows.cells), slice(columns.first, columns.first + columns.cells)
        above: NDArray[Any] = logits[0, y, x] > F(threshold)
        return above.view(np.uint8)
    out = np.empty((rows.size, columns.size), _label_type(len(logits)))
    _argmax_compiled(packed(logits, np.float32, 3), rows.first, columns.first, out)
    return out


@njit(
    types.Tuple((target(types.int32, 2), target(types.float32, 1)))(source(types.float32, 3)),
    **OPTIONS,
)
def _best(scores: Any) -> Any:
    n = scores.shape[2]
    label = np.empty((1, n), np.int32)
    best, chunk = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int32)
    _argmax_row(scores, 0, 0, best, chunk, label[0])
    top = np.empty(n, np.float32)
    for i in range(n):
        top[i] = scores[label[0, i], 0, i]
    return label, top


def best_class(scores: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the index of the best class and its score, both (N,), of `scores` (C, N); ties go to the first class.

    They are int32 and float32.
    """
    label, best = _best(packed(scores, np.float32, 2)[:, None])
    return label[0], best


@njit(
    [types.void(source(element, 2), types.int64, target(types.int64, 2)) for element in (types.uint8, types.uint16)],
    **OPTIONS,
)
def _count_labels(labels: Any, step: Any, counts: Any) -> None:
    h, w = labels.shape
    beyond = counts.shape[1] - 1
    for y in range(0, h, step):
        # Neighbouring pixels are mostly of one label, and would wait for each other's count in a single table.
        table = 0
        for x in range(0, w, step):
            counts[table, min(np.int64(labels[y, x]), beyond)] += 1
            table = (table + 1) & 3


def count_labels(labels: NDArray[Any], number: int, step: int = 1) -> NDArray[np.int64]:
    """Return the pixels of each label below `number`, int64 (number,), of every `step`-th row and column of a map.

    `labels` is uint8 or uint16 (H, W). Raises `ValueError` if a label is not below `number`.
    """
    counts = np.zeros((4, number + 1), np.int64)
    _count_labels(packed(labels, labels.dtype, 2), step, counts)
    found: NDArray[np.int64] = counts.sum(axis=0)
    if found[number]:
        raise ValueError(f"labels up to {labels.max()}; {number} are allowed")
    return found[:number]


@njit(
    [
        types.void(
            _LOGITS, source(element, 2), types.int64, source(types.int64, 1), source(types.int64, 1), types.float32,
            target(types.float64, 2),
        )
        for element in _LABELS
    ],
    **OPTIONS,
)  # fmt: skip
def _sample_confidences(logits: Any, labels: Any, step: Any, rows: Any, columns: Any, factor: Any, sums: Any) -> None:
    classes = logits.shape[0]
    for i in range(rows.shape[0]):
        for j in range(columns.shape[0]):
            y, x, label = rows[i], columns[j], min(np.int64(labels[i * step, j * step]), sums.shape[1] - 1)
            if classes == 1:
                z = logits[0, y, x] * factor
                share = F(1) / (F(1) + exp2(-z if label else z))
            else:
                best, total = logits[0, y, x], F(0)
                for k in range(1, classes):
                    best = max(best, logits[k, y, x])
                for k in range(classes):
                    total += exp2((logits[k, y, x] - best) * factor)
                share = exp2((logits[label, y, x] - best) * factor) / total
            sums[0, label] += 1
            sums[1, label] += share


def sampled_confidences(
    labels: NDArray[Any], logits: NDArray[np.float32], rows: Axis, columns: Axis, temperature: float, step: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return by label the pixels in every `step`-th row and column of a map, and the sum of their probabilities.

    `logits` (C, h, w) are read at the cell nearest to a pixel; logits of one channel belong to the second of two
    classes.
    """
    check_covers(logits.shape, rows, columns)
    sums = np.zeros((2, max(len(logits), 2)))
    cells = []
    for axis in (rows, columns):
        cell, part, _ = axis.positions()
        nearest = np.minimum(cell[::step] + np.rint(part[::step]), axis.cells - 1)
        cells.append((axis.first + nearest).astype(np.int64))
    factor = F(LOG2_E / temperature)
    _sample_confidences(packed(logits, np.float32, 3), packed(labels, labels.dtype, 2), step, *cells, factor, sums)
    return sums[0].astype(np.int64), sums[1]
