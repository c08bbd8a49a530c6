"""Masks of an R-CNN head as COCO RLE, found without full-resolution pixels.

A low-resolution mask, stretched bilinearly over its box, is in one column of pixels a piecewise linear profile: its
crossings of the threshold are solved for the row, and give the runs at once. The cost does not depend on the image.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.masks import LANES, threshold_columns
from segserve_builder.kernels.rle import MAX_CHARACTERS, split, with_room, write_string

F: Final = np.float32
ONE: Final = F(1)
HALF: Final = F(0.5)
FARTHEST: Final = 2.0**30
"""Boxes end here, in pixels: no image reaches as far, and sums of two such coordinates stay exact."""


@njit(**OPTIONS)
def _truncated(value: Any, least: Any, most: Any) -> Any:
    """Return `value` without its fraction, within least..most whatever it is: `least` where it is NaN."""
    if not value > least:
        return np.int64(least)
    return np.int64(min(value, np.float64(most)))


@njit(**OPTIONS)
def _expanded(low: Any, high: Any, cells: Any) -> Any:
    """Return the pixels from and to which torchvision stretches a mask and the border of zeros around it."""
    half = (high - low) * HALF * F(cells / (cells - 2))
    middle = (high + low) * HALF
    first, last = np.float64(middle - half), np.float64(middle + half)
    return _truncated(first, -FARTHEST, FARTHEST), _truncated(last, -FARTHEST, FARTHEST)


@njit(**OPTIONS)
def _stretch(low: Any, high: Any, cells: Any, size: Any, cell: Any, part: Any) -> Any:
    """Fill one axis as `interpolate(align_corners=False)` does, over the box in whole pixels.

    Return the range of pixels that are filled, and step and bias of `(pixel + 0.5) / step + bias`, their position.
    """
    first, last = _expanded(low, high, cells)
    scale = np.float64(F(cells) / F(max(last - first + 1, 1)))
    start, stop = min(max(first, 0), size), min(max(last + 1, 0), size)
    for x in range(start, stop):
        position = max((np.float64(x - first) + 0.5) * scale - 0.5, 0.0)
        i = min(np.int32(position), np.int32(cells - 1))
        cell[x] = i
        part[x] = min(F(position - i), ONE)
    return start, stop, F(1 / scale), F(-np.float64(first) * scale - 0.5)


@njit(**OPTIONS)
def _sample(low: Any, high: Any, cells: Any, size: Any, cell: Any, part: Any) -> Any:
    """Fill one axis as detectron2's `grid_sample` does, over the box as it is; return what `_stretch` does."""
    extent = high - low
    half = HALF * F(cells - 2)
    start = _truncated(np.floor(np.float64(low)) - 1, 0, size)
    stop = _truncated(np.ceil(np.float64(high)) + 1, 0, size)
    if extent <= 0:
        return start, start, ONE, F(0)
    begin, end = stop, stop
    for x in range(start, stop):
        where = (F(x) + HALF - low) / extent * F(2) - ONE
        position = (where + ONE) * half - HALF
        i = np.floor(position)
        if position > F(-1) and position < F(cells - 2):
            begin, end = min(begin, x), x + 1
            cell[x] = np.int32(i) + 1
            part[x] = position - i
    scale = np.float64(cells - 2) / np.float64(extent)
    return begin, end, F(1 / scale), F(0.5 - np.float64(low) * scale)


@njit(**OPTIONS)
def _first_pixels(cell: Any, start: Any, stop: Any, cells: Any, first: Any) -> None:
    """Write at first[i] the first pixel of [start, stop) whose cell is i or later; `first` is one longer than cells."""
    done = 0
    for y in range(start, stop):
        while done <= cell[y]:
            first[done] = y
            done += 1
    while done <= cells:
        first[done] = stop
        done += 1


@njit(
    types.Tuple((target(types.uint8, 1), target(types.int64, 1)))(
        source(types.float32, 3), source(types.float32, 2), types.int64, types.int64, types.float32, types.boolean
    ),
    **OPTIONS,
)
def _paste(masks: Any, boxes: Any, height: Any, width: Any, limit: Any, whole: Any) -> Any:
    inner = masks.shape[1]
    cells = inner + 2
    block = np.zeros((cells, (cells + LANES - 1) // LANES * LANES), np.float32)
    profile, y_first = np.empty(block.shape[1], np.float32), np.empty(cells + 1, np.int32)
    x_cell, x_part = np.empty(width, np.int32), np.empty(width, np.float32)
    y_cell, y_part = np.empty(height, np.int32), np.empty(height, np.float32)
    out, offsets = np.empty(4096, np.uint8), np.zeros(masks.shape[0] + 1, np.int64)
    p = 0
    for m in range(masks.shape[0]):
        for r in range(inner):
            for c in range(inner):
                block[c + 1, r + 1] = masks[m, r, c]
        if whole:
            x0, x1, _, _ = _stretch(boxes[m, 0], boxes[m, 2], cells, width, x_cell, x_part)
            y0, y1, step, bias = _stretch(boxes[m, 1], boxes[m, 3], cells, height, y_cell, y_part)
        else:
            x0, x1, _, _ = _sample(boxes[m, 0], boxes[m, 2], cells, width, x_cell, x_part)
            y0, y1, step, bias = _sample(boxes[m, 1], boxes[m, 3], cells, height, y_cell, y_part)
        if x1 <= x0 or y1 <= y0:
            x1 = x0
        _first_pixels(y_cell, y0, y1, cells, y_first)
        counts = np.empty((x1 - x0) * (cells + 2) + 2, np.int32)
        n = threshold_columns(
            block, 0, 0, cells, cells, x_cell, x_part, y_part, y_first, step, bias, limit,
            x0, x1, y0, y1, height, width, profile, counts,
        )  # fmt: skip
        out = with_room(out, p, n * MAX_CHARACTERS)
        p = write_string(counts, n, out, p)
        offsets[m + 1] = p
    return out[:p], offsets


def paste_rles(
    masks: NDArray[np.float32],
    boxes: NDArray[np.float32],
    height: int,
    width: int,
    threshold: float = 0.5,
    *,
    whole_pixels: bool = True,
) -> tuple[bytes, ...]:
    """Return COCO's compressed counts, for a mask of `height` x `width` each, of N masks stretched over their boxes.

    `masks` float32 (N, M, M) of numbers >= 0, `boxes` float32 (N, 4) as x1 y1 x2 y2; 0 < threshold < 1. With
    `whole_pixels` they equal torchvision's `paste_masks_in_image` (boxes grow with the mask's border of zeros
    and are cut to whole pixels; a pixel is set above the threshold), else detectron2's (boxes as they are; a pixel
    is set from the threshold on). Raises `ValueError` if shapes do not match.
    """
    masks, boxes = packed(masks, np.float32, 3), packed(boxes, np.float32, 2)
    if masks.shape[1] != masks.shape[2] or not masks.shape[1] or boxes.shape != (len(masks), 4):
        raise ValueError(f"masks and boxes have shapes {masks.shape} and {boxes.shape}; they are (N, M, M) and (N, 4)")
    limit = F(threshold) if whole_pixels else np.nextafter(F(threshold), F(-1))
    text, offsets = _paste(masks, boxes, height, width, limit, whole_pixels)
    return split(text, offsets)
