"""The masks of all classes of a label map as COCO run lengths, in one pass over its pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source
from segserve_builder.kernels.rle import MAX_CHARACTERS, add_run, by_column, changes_below, write_string

_RESULT = types.Tuple((types.Array(types.uint8, 1, "C"), types.Array(types.int64, 1, "C")))


@njit(**OPTIONS)
def _segments(labels: Any, rows: Any, per_column: Any) -> Any:
    """Find where a label begins in each column, sorted by column; return how many there are."""
    h, w = labels.shape
    xs, ys = np.empty(h * w, np.int32), np.empty(h * w, np.int32)
    for x in range(w):
        xs[x], ys[x] = x, 0
        per_column[x] = 1
    n = changes_below(labels.reshape(-1), h, w, xs, ys, per_column, w)
    by_column(xs, ys, n, per_column, rows)
    return n


@njit([_RESULT(source(element, 2), types.int64) for element in (types.uint8, types.uint16)], **OPTIONS)
def _encode_labels(labels: Any, number: Any) -> Any:
    h, w = labels.shape
    rows, per_column = np.empty(h * w, np.int32), np.empty(w, np.int32)
    segments = _segments(labels, rows, per_column)
    first = np.zeros(number + 1, np.int64)
    e = 0
    for x in range(w):
        while e < per_column[x]:
            first[labels[rows[e], x] + 1] += 2
            e += 1
    for label in range(number):
        first[label + 1] += first[label] + 1
    counts = np.empty(2 * segments + number, np.int32)
    filled, last = np.zeros(number, np.int64), np.zeros(number, np.int64)
    e = 0
    for x in range(w):
        end = np.int64(per_column[x])
        while e < end:
            start, stop = np.int64(rows[e]), np.int64(rows[e + 1]) if e + 1 < end else h
            label = labels[start, x]
            own = counts[first[label] :]
            filled[label], last[label] = add_run(own, filled[label], last[label], x * h + start, x * h + stop)
            e += 1
    out, ends = np.empty(counts.size * MAX_CHARACTERS, np.uint8), np.empty(number, np.int64)
    p = 0
    for label in range(number):
        n, own = filled[label], counts[first[label] :]
        if last[label] < h * w:
            own[n] = h * w - last[label]
            n += 1
        p = write_string(own, n, out, p)
        ends[label] = p
    return out, ends


def encode_labels(labels: NDArray[Any], number: int) -> list[bytes]:
    """Return COCO's compressed counts of the mask of each label below `number`.

    `labels` is uint8 or uint16 shaped (H, W) with at least one pixel. Raises `ValueError` if a label is not below
    `number`.
    """
    if labels.max(initial=0) >= number:
        raise ValueError(f"labels up to {labels.max()}; {number} are allowed")
    out, ends = _encode_labels(packed(labels, labels.dtype, 2), number)
    starts = [0, *ends[:-1].tolist()]
    return [out[start:end].tobytes() for start, end in zip(starts, ends.tolist(), strict=True)]
