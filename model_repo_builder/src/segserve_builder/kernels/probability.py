"""Areas and summed probabilities of labels over bilinearly upsampled logits, without the upsampled tensor.

Blocks of columns stay in the cache: a row of cells is spread over the block's pixels once, and each row of pixels is a
blend of two such rows. A class whose greatest value in a block lies
so far below what the best class surely reaches that all such classes together change no probability by more than a
millionth of itself is left out there.
"""

from __future__ import annotations

from math import e, log2
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from segserve_builder.kernels.bits import multiply_add
from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32
FUSED: Final = {**OPTIONS, "fastmath": {"contract"}}
BLOCK: Final = 512
TABLES: Final = 4
"""Neighbouring pixels add to different tables: most are of one class, and would wait for each other's sum."""
LOG2_E: Final = log2(e)
LEFT_OUT: Final = 1e-6


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """Return 2 ** exponent as float32, for an int32 from -126 to 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        biased = builder.add(arguments[0], ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@njit(**FUSED)
def exp2(z: Any) -> Any:
    """Return 2 ** z to 3e-7 of itself, where z is within -126 and 126, which count for what lies beyond."""
    z = min(max(z, F(-126)), F(126))
    whole = (z + F(12582912)) - F(12582912)  # adding 1.5 * 2 ** 23 rounds to a whole number
    f = z - whole
    p = F(1.33953e-3)
    p = p * f + F(9.67079e-3)
    p = p * f + F(5.550341e-2)
    p = p * f + F(2.4022211e-1)
    p = p * f + F(6.931472e-1)
    p = p * f + F(1)
    return p * _power_of_two(np.int32(whole))


@njit(**OPTIONS)
def blend(near: Any, far: Any, part: Any) -> Any:
    """Return what lies `part` of the way from near to far, rounded as in torch's bilinear `interpolate`."""
    return multiply_add(F(1) - part, near, part * far)


@njit(**OPTIONS)
def is_straight(x_cell: Any, x_part: Any) -> Any:
    """Return whether pixel x is cell x, for all of them."""
    straight = True
    for x in range(x_cell.shape[0]):
        straight &= x_cell[x] == x and x_part[x] == F(0)
    return straight


@njit(**FUSED)
def spread(cells: Any, x_cell: Any, x_part: Any, straight: Any, x0: Any, out: Any) -> Any:
    """Write the row of cells, sampled at the pixels from x0 on, to `out`."""
    if straight:
        same = cells[x0 : x0 + out.shape[0]]
        for x in range(out.shape[0]):
            out[x] = same[x]
        return
    last = cells.shape[0] - 1
    cell, part = x_cell[x0 : x0 + out.shape[0]], x_part[x0 : x0 + out.shape[0]]
    for x in range(out.shape[0]):
        c = np.uint32(cell[x])
        d = min(c + np.uint32(1), np.uint32(last))
        out[x] = blend(cells[c], cells[d], part[x])


@njit(**FUSED)
def _relevant(above: Any, below: Any, m: Any, reach: Any, floor: Any, greatest: Any, kept: Any) -> Any:
    """List the classes of a block that can matter; return their number."""
    for x in range(m):
        floor[x] = F(-np.inf)
    for k in range(above.shape[0]):
        a, b = above[k], below[k]
        most = greatest[k]
        for x in range(m):
            low, high = min(a[x], b[x]), max(a[x], b[x])
            floor[x] = max(floor[x], low)
            most[x] = high
    n = 0
    for k in range(above.shape[0]):
        most = greatest[k]
        near: Any = np.int32(0)
        for x in range(m):
            near |= np.int32(floor[x] - most[x] <= reach)
        kept[n] = k
        n += near
    return n


@njit(**FUSED)
def _sum_row(
    above: Any, below: Any, part: Any, labels: Any, scale: Any, kept: Any, n: Any, own: Any, total: Any
) -> Any:
    """Write total[x] = 1 / probability of the label of each pixel of a row."""
    m = labels.shape[0]
    flat_above, flat_below, stride = above.reshape(-1), below.reshape(-1), np.uint32(above.shape[1])
    for x in range(m):
        at = np.uint32(labels[x]) * stride + np.uint32(x)
        own[x] = blend(flat_above[at], flat_below[at], part)
        total[x] = F(0)
    for c in range(n):
        a, b = above[kept[c]], below[kept[c]]
        for x in range(m):
            total[x] += exp2((blend(a[x], b[x], part) - own[x]) * scale)


_CELL: Final = target(types.int32, 1)
_PART: Final = target(types.float32, 1)


@njit(
    [
        types.void(
            source(types.float32, 3), types.int64, types.int64, _PART, _CELL, _CELL, _PART, types.int64,
            source(element, 2), source(part, 2), types.float32, types.float32, target(types.float64, 2),
            target(types.int64, 2),
        )
        for element in (types.uint8, types.uint16)
        for part in (element, types.int32)
    ],
    **FUSED,
)  # fmt: skip
def _label_sums(
    logits: Any, top: Any, left: Any, y_part: Any, y_first: Any, x_cell: Any, x_part: Any, w: Any,
    labels: Any, parts: Any, scale: Any, reach: Any, sums: Any, areas: Any,
) -> Any:  # fmt: skip
    classes, h, width = logits.shape[0], y_first.shape[0] - 1, labels.shape[1]
    rows = np.empty((2, classes, BLOCK), np.float32)
    greatest, floor = np.empty((classes, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    own, total, kept = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(classes + 1, np.int32)
    straight = is_straight(x_cell, x_part)
    for x0 in range(0, width, BLOCK):
        m = min(BLOCK, width - x0)
        held = -1
        for i in range(h):
            ya, yb = y_first[i], y_first[i + 1]
            if ya == yb:
                continue
            i2 = min(i + 1, h - 1)
            above, below = rows[i & 1], rows[i2 & 1]
            for k in range(classes):
                if held != i:
                    spread(logits[k, top + i, left : left + w], x_cell, x_part, straight, x0, above[k, :m])
                if i2 != i:
                    spread(logits[k, top + i2, left : left + w], x_cell, x_part, straight, x0, below[k, :m])
            held = i2
            n = _relevant(above, below, m, reach, floor, greatest, kept)
            for y in range(ya, yb):
                row = labels[y, x0 : x0 + m]
                _sum_row(above, below, y_part[y], row, scale, kept, n, own, total)
                part = parts[y, x0 : x0 + m]
                for x in range(m):
                    sums[x & 3, part[x]] += F(1) / total[x]
                    areas[x & 3, part[x]] += 1


def label_sums(
    logits: NDArray[np.float32],
    rows: Axis,
    columns: Axis,
    labels: NDArray[Any],
    temperature: float = 1.0,
    parts: NDArray[np.int32] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each class's area in pixels, and the sum over it of the class's probability, both (C,).

    The probability is the softmax of `logits` (C, h, w), finite, sampled at the pixel and divided by `temperature`.
    `labels` is uint8 or uint16, (rows.size, columns.size), below C; they need not be the most probable ones. With
    `parts`, numbers from 0 on of the same shape, both are per part, (parts.max() + 1,), of the class of each of its
    pixels. Raises `ValueError` if shapes do not match.
    """
    classes = len(logits)
    check_covers(logits.shape, rows, columns)
    if parts is not None and parts.shape != labels.shape:
        raise ValueError(f"parts of shape {parts.shape}; the labels' is {labels.shape}")
    if labels.shape != (rows.size, columns.size) or labels.max(initial=0) >= classes:
        seen = f"labels of shape {labels.shape} up to {labels.max(initial=0)}"
        raise ValueError(f"{seen}; {(rows.size, columns.size)} of fewer than {classes} are expected")
    number = classes if parts is None else int(parts.max(initial=0)) + 1
    areas, sums = np.zeros((TABLES, number), np.int64), np.zeros((TABLES, number))
    labels, scale = packed(labels, labels.dtype, 2), LOG2_E / temperature
    _label_sums(
        packed(logits, np.float32, 3), rows.first, columns.first, *rows.positions()[1:], *columns.positions()[:2],
        columns.cells, labels, labels if parts is None else packed(parts, np.int32, 2), F(scale),
        F(log2(classes / LEFT_OUT) / scale), sums, areas,
    )  # fmt: skip
    return areas.sum(axis=0), sums.sum(axis=0)


def check_covers(shape: tuple[int, ...], rows: Axis, columns: Axis) -> None:
    """Raise `ValueError` if a grid (C, h, w) does not have the cells of both axes."""
    if rows.first + rows.cells > shape[1] or columns.first + columns.cells > shape[2]:
        raise ValueError(f"logits of shape {shape} do not cover {rows} and {columns}")
