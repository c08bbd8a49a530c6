"""Masks of a YOLO-seg head as COCO RLE, found without full-resolution pixels.

A mask's logits are coefficients times prototypes, upsampled bilinearly. Within one column of pixels that is a
piecewise linear profile: its sign changes are solved for the row, and give the runs at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import blend_above32, lowest_bit
from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.rle import MAX_CHARACTERS, add_run, split, with_room, write_string

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32
ZERO: Final = F(0)
ONE: Final = F(1)
LANES: Final = 32
BAND: Final = 16
"""Rows of prototypes that are used together: 32 channels of 16 x 160 cells are 330 kB."""
GROUP: Final = 1 << 20
"""Cells of the masks that are made together, 4 MB, unless a single mask has more."""


@njit(**{**OPTIONS, "fastmath": {"contract"}})
def _project(prototypes: Any, coefficients: Any, y: Any, x0: Any, x1: Any, out: Any) -> Any:
    """Write out[:x1 - x0] = coefficients @ prototypes[:, y, x0:x1], four channels a pass."""
    n = x1 - x0
    fours = coefficients.shape[0] // 4 * 4
    for q in range(n):
        out[q] = ZERO
    for k in range(0, fours, 4):
        a, b, c, d = coefficients[k], coefficients[k + 1], coefficients[k + 2], coefficients[k + 3]
        pa, pb = prototypes[k, y, x0:x1], prototypes[k + 1, y, x0:x1]
        pc, pd = prototypes[k + 2, y, x0:x1], prototypes[k + 3, y, x0:x1]
        for q in range(n):
            out[q] += a * pa[q] + b * pb[q] + c * pc[q] + d * pd[q]
    for k in range(fours, coefficients.shape[0]):
        a, pa = coefficients[k], prototypes[k, y, x0:x1]
        for q in range(n):
            out[q] += a * pa[q]


@njit(**OPTIONS)
def _value(profile: Any, last: Any, cell: Any, part: Any) -> Any:
    return (ONE - part) * profile[cell] + part * profile[min(cell + 1, last)]


@njit(**OPTIONS)
def _column_runs(
    profile: Any, bits: Any, changes: Any, k0: Any, r0: Any, rows: Any, y_part: Any, y_first: Any,
    step: Any, bias: Any, limit: Any, y0: Any, y1: Any, at: Any, start: Any, counts: Any, n: Any, last: Any,
) -> Any:  # fmt: skip
    """Turn the sign changes of one block of a column's profile into runs; return (start, n, last)."""
    while changes:
        bit = lowest_bit(changes)
        changes &= changes - 1
        k = k0 + bit - 1  # the change is between cells k and k + 1, so at one of cell k's pixels or right after them
        first = min(max(np.int64(y_first[r0 + k]), y0), y1)
        stop = min(max(np.int64(y_first[r0 + k + 1]), y0), y1)
        crossing = F(r0 + k) + (limit - profile[k]) / (profile[k + 1] - profile[k])
        y = min(max(np.int64(np.ceil((crossing - bias) * step - F(0.5))), first), stop)
        now = (bits >> bit & 1) == 1
        # The solution may be off by a rounding: the values of the pixels themselves decide.
        while y > first and (_value(profile, rows - 1, k, y_part[y - 1]) > limit) == now:
            y -= 1
        while y < stop and (_value(profile, rows - 1, k, y_part[y]) > limit) != now:
            y += 1
        if now:
            start = y
        else:
            if y > start:
                n, last = add_run(counts, n, last, at + start, at + y)
            start = -1
    return start, n, last


@njit(**OPTIONS)
def threshold_columns(
    block: Any, c0: Any, r0: Any, columns: Any, rows: Any, x_cell: Any, x_part: Any, y_part: Any, y_first: Any,
    step: Any, bias: Any, limit: Any, x0: Any, x1: Any, y0: Any, y1: Any, height: Any, width: Any,
    profile: Any, counts: Any,
) -> Any:  # fmt: skip
    """Write the counts of the mask that is set where the upsampled block > limit in [x0, x1) x [y0, y1).

    block[c, r] holds cells column by column, from cell (r0, c0) on; its row stride is a multiple of LANES. A cell is
    `step` rows of pixels high, and row y lies at cell (y + 0.5) / step + bias.
    """
    n, last = 0, 0
    flat, stride = block.reshape(-1), block.shape[1]
    for x in range(x0, x1):
        i = x_cell[x] - c0
        part = x_part[x]
        a, b = i * stride, min(i + 1, columns - 1) * stride
        start, previous = -1, 0
        at = x * height
        for k0 in range(0, rows, LANES):
            valid = (1 << min(rows - k0, LANES)) - 1
            bits = blend_above32(flat, a + k0, b + k0, ONE - part, part, limit, profile, k0) & valid
            if k0 == 0:
                previous = bits & 1
                if previous:
                    start = y0
            changes = (bits ^ (bits << 1 | previous)) & valid
            previous = bits >> (LANES - 1)
            start, n, last = _column_runs(
                profile, bits, changes, k0, r0, rows, y_part, y_first, step, bias, limit, y0, y1, at,
                start, counts, n, last,
            )  # fmt: skip
        if start >= 0 and y1 > start:
            n, last = add_run(counts, n, last, at + start, at + y1)
    if last < height * width:
        counts[n] = height * width - last
        n += 1
    return n


@njit(**OPTIONS)
def _extents(boxes: Any, x_cell: Any, y_cell: Any, cells_wide: Any, cells_high: Any) -> Any:
    """Return the cells that each box needs, as first column, first row, columns, rows, and the stride of its block."""
    extents = np.zeros((boxes.shape[0], 5), np.int64)
    for m in range(boxes.shape[0]):
        x0, y0, x1, y1 = boxes[m, 0], boxes[m, 1], boxes[m, 2], boxes[m, 3]
        if x1 > x0 and y1 > y0:
            c0, r0 = np.int64(x_cell[x0]), np.int64(y_cell[y0])
            rows = min(np.int64(y_cell[y1 - 1]) + 2, cells_high) - r0
            extents[m, 0], extents[m, 1], extents[m, 3] = c0, r0, rows
            extents[m, 2] = min(np.int64(x_cell[x1 - 1]) + 2, cells_wide) - c0
            extents[m, 4] = (rows + LANES - 1) // LANES * LANES
    return extents


@njit(**OPTIONS)
def _end_of_group(extents: Any, begin: Any) -> Any:
    """Return the mask up to which blocks are made together, and the room that they take."""
    end, room = begin, np.int64(0)
    while end < extents.shape[0]:
        more = extents[end, 2] * extents[end, 4]
        if end > begin and room + more > GROUP:
            break
        room += more
        end += 1
    return end, room


@njit(**OPTIONS)
def _fill_blocks(
    prototypes: Any, coefficients: Any, extents: Any, begin: Any, end: Any, top: Any, left: Any, line: Any, blocks: Any
) -> None:
    """Write the logits of masks begin..end one after another, each column by column.

    All masks use some rows of the prototypes before any uses the next ones, so that these stay in the cache.
    """
    for band in range(0, prototypes.shape[1] - top, BAND):
        at = 0
        for m in range(begin, end):
            c0, r0, columns, rows, stride = extents[m, 0], extents[m, 1], extents[m, 2], extents[m, 3], extents[m, 4]
            for r in range(max(band - r0, 0), min(band + BAND - r0, rows)):
                _project(prototypes, coefficients[m], top + r0 + r, left + c0, left + c0 + columns, line)
                for q in range(columns):
                    blocks[at + q * stride + r] = line[q]
            at += columns * stride


_CELL: Final = target(types.int32, 1)
_PART: Final = target(types.float32, 1)


@njit(
    types.Tuple((target(types.uint8, 1), target(types.int64, 1)))(
        source(types.float32, 3), source(types.float32, 2), source(types.int64, 2), types.int64, types.int64,
        _CELL, _PART, _CELL, _CELL, _PART, _CELL, types.float32, types.float32, types.float32,
    ),
    **OPTIONS,
)  # fmt: skip
def _mask_rles(
    prototypes: Any, coefficients: Any, boxes: Any, top: Any, left: Any, y_cell: Any, y_part: Any, y_first: Any,
    x_cell: Any, x_part: Any, x_first: Any, step: Any, bias: Any, limit: Any,
) -> Any:  # fmt: skip
    cells_high, cells_wide = y_first.shape[0] - 1, x_first.shape[0] - 1
    height, width = y_cell.shape[0], x_cell.shape[0]
    extents = _extents(boxes, x_cell, y_cell, cells_wide, cells_high)
    profile, line = np.empty(cells_high + LANES, np.float32), np.empty(cells_wide, np.float32)
    out, offsets = np.empty(4096, np.uint8), np.zeros(coefficients.shape[0] + 1, np.int64)
    p, begin = 0, 0
    while begin < extents.shape[0]:
        end, room = _end_of_group(extents, begin)
        blocks = np.zeros(room, np.float32)
        _fill_blocks(prototypes, coefficients, extents, begin, end, top, left, line, blocks)
        at = 0
        for m in range(begin, end):
            c0, r0, columns, rows, stride = extents[m, 0], extents[m, 1], extents[m, 2], extents[m, 3], extents[m, 4]
            x0, y0, x1, y1 = boxes[m, 0], boxes[m, 1], boxes[m, 2], boxes[m, 3]
            if not rows:
                x1 = x0
            counts = np.empty((x1 - x0) * (rows + 2) + 2, np.int32)
            n = threshold_columns(
                blocks[at : at + columns * stride].reshape(columns, stride), c0, r0, columns, rows,
                x_cell, x_part, y_part, y_first, step, bias, limit, x0, x1, y0, y1, height, width, profile, counts,
            )  # fmt: skip
            out = with_room(out, p, n * MAX_CHARACTERS)
            p = write_string(counts, n, out, p)
            offsets[m + 1] = p
            at += columns * stride
        begin = end
    return out[:p], offsets


def mask_rles(
    prototypes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    boxes: NDArray[np.float32],
    rows: Axis,
    columns: Axis,
    threshold: float = 0.0,
) -> tuple[bytes, ...]:
    """Return COCO's compressed counts, for a mask of rows.size x columns.size each, of N instances.

    A pixel is set where `coefficients @ prototypes`, sampled there, is above `threshold`, and x1 <= x < x2, y1 <= y <
    y2 of its box. `prototypes` (K, h, w), `coefficients` (N, K), `boxes` (N, 4), all finite. Arrays are float32. Raises
    `ValueError` if shapes do not match.
    """
    prototypes, coefficients = packed(prototypes, np.float32, 3), packed(coefficients, np.float32, 2)
    n = len(coefficients)
    if coefficients.shape[1] != len(prototypes) or boxes.shape != (n, 4):
        shapes = f"{prototypes.shape}, {coefficients.shape}, {boxes.shape}"
        raise ValueError(f"prototypes, coefficients, boxes have shapes {shapes}")
    if rows.first + rows.cells > prototypes.shape[1] or columns.first + columns.cells > prototypes.shape[2]:
        raise ValueError(f"prototypes of shape {prototypes.shape} do not cover {rows} and {columns}")
    size = np.array([columns.size, rows.size] * 2, np.float32)
    pixels = np.ceil(np.clip(boxes, 0, size)).astype(np.int64)
    text, offsets = _mask_rles(
        prototypes, coefficients, packed(pixels, np.int64, 2), rows.first, columns.first,
        *rows.positions(), *columns.positions(), F(1 / rows.scale), F(rows.bias), F(threshold),
    )  # fmt: skip
    return split(text, offsets)
