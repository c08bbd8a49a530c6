"""Masks of cells, drawn as blocks of pixels, as COCO run lengths."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.rle import MAX_CHARACTERS, add_run, write_string

_FIRST: Final = target(types.int32, 1)


@njit(
    types.Tuple((target(types.uint8, 1), target(types.int64, 1)))(source(types.uint8, 3), _FIRST, _FIRST),
    **OPTIONS,
)
def _nearest_rles(masks: Any, y_first: Any, x_first: Any) -> Any:
    n, h, w = masks.shape
    height, width = np.int64(y_first[h]), np.int64(x_first[w])
    start, stop = np.empty(h + 1, np.int64), np.empty(h + 1, np.int64)
    out, ends = np.empty(4096, np.uint8), np.empty(n, np.int64)
    p = 0
    for m in range(n):
        counts = np.empty(width * (h + 1) + 2, np.int32)
        filled, last = 0, 0
        for j in range(w):
            runs: Any = 0
            inside = False
            for i in range(h):
                if masks[m, i, j] and y_first[i] < y_first[i + 1]:
                    if not inside:
                        start[runs] = y_first[i]
                    stop[runs] = y_first[i + 1]
                    inside = True
                elif inside and not masks[m, i, j]:
                    runs, inside = runs + 1, False
            runs += np.int64(inside)
            for x in range(x_first[j], x_first[j + 1]):
                at = x * height
                for r in range(runs):
                    filled, last = add_run(counts, filled, last, at + start[r], at + stop[r])
        if last < height * width:
            counts[filled] = height * width - last
            filled += 1
        need = p + filled * MAX_CHARACTERS
        if need > out.shape[0]:
            larger = np.empty(2 * need, np.uint8)
            larger[:p] = out[:p]
            out = larger
        p = write_string(counts, filled, out, p)
        ends[m] = p
    return out[:p], ends


def nearest_rles(masks: NDArray[np.uint8], y_first: NDArray[np.int32], x_first: NDArray[np.int32]) -> tuple[bytes, ...]:
    """Return COCO's compressed counts of N masks of cells, uint8 0/1 (N, h, w), drawn as blocks of pixels.

    Cell (i, j) covers the pixels of rows y_first[i] to before y_first[i + 1] and the like columns; the last of each,
    h + 1 and w + 1 in all, are the mask's height and width. Raises `ValueError` if they do not fit.
    """
    masks = packed(masks, np.uint8, 3)
    y_first, x_first = packed(y_first, np.int32, 1), packed(x_first, np.int32, 1)
    if masks.shape[1:] != (len(y_first) - 1, len(x_first) - 1):
        raise ValueError(f"masks of shape {masks.shape} have {len(y_first) - 1} rows and {len(x_first) - 1} columns")
    text, ends = _nearest_rles(masks, y_first, x_first)
    joined = text.tobytes()
    return tuple(joined[start:stop] for start, stop in pairwise([0, *ends.tolist()]))
