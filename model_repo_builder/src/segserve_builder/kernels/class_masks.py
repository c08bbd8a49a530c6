"""The mask of one class of bilinearly upsampled logits, and its mean probability, only where the mask can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.probability import LOG2_E, blend, check_covers, exp2, is_straight, spread
from segserve_builder.kernels.rle import MaskWindow, encode

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32


@njit(**OPTIONS)
def _reach(logits: Any, k: Any, top: Any, left: Any, w: Any, limit: Any, low: Any, high: Any) -> Any:
    """Write the first and the last cell above the limit of each row of cells; high is -1 if there is none."""
    for i in range(low.shape[0]):
        row = logits[k, top + i, left : left + w]
        some = np.int32(0)
        for j in range(w):
            some |= np.int32(row[j] > limit)
        low[i], high[i] = w, -1
        if some:
            first, last = 0, w - 1
            while not row[first] > limit:
                first += 1
            while not row[last] > limit:
                last -= 1
            low[i], high[i] = first, last


@njit(**OPTIONS)
def _mask_row(above: Any, below: Any, part: Any, limit: Any, scale: Any, is_set: Any, sums: Any, out: Any) -> Any:
    """Write a row of the mask, add its probabilities to the pixels' sums, and return its area."""
    for x in range(out.shape[0]):
        v = blend(above[x], below[x], part)
        probability = F(1) / (F(1) + exp2(-v * scale))
        is_set[x] = np.int32(v > limit)
        sums[x] += probability if v > limit else F(0)
    area = np.int32(0)
    for x in range(out.shape[0]):
        out[x] = is_set[x]
        area += is_set[x]
    return area


_CELL: Final = target(types.int32, 1)
_PART: Final = target(types.float32, 1)


@njit(
    types.Tuple((target(types.uint8, 2), types.int64, types.int64, types.int64, types.float64))(
        source(types.float32, 3), types.int64, types.int64, types.int64, _CELL, _PART, _CELL, _CELL, _PART, _CELL,
        types.float32, types.float32,
    ),
    **OPTIONS,
)  # fmt: skip
def _class_mask(
    logits: Any, k: Any, top: Any, left: Any, y_cell: Any, y_part: Any, y_first: Any,
    x_cell: Any, x_part: Any, x_first: Any, limit: Any, scale: Any,
) -> Any:  # fmt: skip
    """Return a window that holds the mask as a bitmap, its top and left, the area and the summed probability."""
    h, w, width = y_first.shape[0] - 1, x_first.shape[0] - 1, x_cell.shape[0]
    low, high = np.empty(h, np.int64), np.empty(h, np.int64)
    _reach(logits, k, top, left, w, limit, low, high)
    # A pixel lies between its cell and the next, so a cell's value also reaches the pixels of the one before.
    y0, y1, x0, x1 = y_cell.shape[0], 0, width, 0
    for i in range(h):
        if high[i] >= 0:
            y0, y1 = min(y0, y_first[max(i - 1, 0)]), max(y1, y_first[i + 1])
            x0, x1 = min(x0, x_first[max(low[i] - 1, 0)]), max(x1, x_first[high[i] + 1])
    bitmap = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), np.uint8)
    area, total = np.int64(0), 0.0
    rows, sums = np.empty((2, bitmap.shape[1]), np.float32), np.empty(bitmap.shape[1], np.float32)
    is_set, straight = np.empty(bitmap.shape[1], np.int32), is_straight(x_cell, x_part)
    for i in range(h):
        i2 = min(i + 1, h - 1)
        if max(high[i], high[i2]) < 0 or y_first[i] == y_first[i + 1]:
            continue
        xa, xb = x_first[max(min(low[i], low[i2]) - 1, 0)], x_first[max(high[i], high[i2]) + 1]
        above, below = rows[0, : xb - xa], rows[1, : xb - xa]
        spread(logits[k, top + i, left : left + w], x_cell, x_part, straight, xa, above)
        spread(logits[k, top + i2, left : left + w], x_cell, x_part, straight, xa, below)
        sums[:] = F(0)
        for y in range(y_first[i], y_first[i + 1]):
            row = bitmap[y - y0, xa - x0 : xb - x0]
            area += _mask_row(above, below, y_part[y], limit, scale, is_set, sums, row)
        for x in range(xb - xa):
            total += sums[x]
    return bitmap, np.int64(y0), np.int64(x0), area, total


def class_masks(
    logits: NDArray[np.float32],
    rows: Axis,
    columns: Axis,
    limits: NDArray[np.float32],
    temperature: float = 1.0,
) -> tuple[tuple[bytes, ...], NDArray[np.int64], NDArray[np.float64]]:
    """Return each class's mask as COCO's compressed counts, its area, and the sum of its probability over it.

    A pixel is in a class's mask where its logit, sampled there as torch's bilinear `interpolate` does, is above the
    class's limit; the probability is the sigmoid of logit / `temperature`. `logits` (C, h, w) and `limits` (C,) are
    finite; the masks have rows.size x columns.size pixels. `logits` are float32; areas are int64 and sums float64.
    Raises `ValueError` if shapes do not match.
    """
    check_covers(logits.shape, rows, columns)
    if limits.shape != (len(logits),):
        raise ValueError(f"limits have shape {limits.shape}; logits of shape {logits.shape} need one a class")
    logits = packed(logits, np.float32, 3)
    down, across = rows.positions(), columns.positions()
    masks: list[bytes] = []
    areas, sums = np.zeros(len(logits), np.int64), np.zeros(len(logits))
    for k, limit in enumerate(limits):
        bitmap, top, left, areas[k], sums[k] = _class_mask(
            logits, k, rows.first, columns.first, *down, *across, F(limit), F(LOG2_E / temperature)
        )
        masks.append(encode(MaskWindow(bitmap, top, left), rows.size, columns.size))
    return tuple(masks), areas, sums
