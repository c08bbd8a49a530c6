"""Greedy non-maximum suppression: kept boxes in blocks of 16 per class, and a sort that goes only as far as needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types

from segserve_builder.kernels.bits import lowest_bit, overlap16
from segserve_builder.kernels.compiled import OPTIONS, packed, source

if TYPE_CHECKING:
    from numpy.typing import NDArray

F: Final = np.float32
BLOCK: Final = 16
BUCKETS: Final = 4096
BATCH: Final = 64


@njit(**OPTIONS)
def _overlaps(x0: Any, y0: Any, x1: Any, y1: Any, area: Any, kept: Any, first: Any, last: Any, limit: Any) -> Any:
    """Return whether a box of the blocks kept[first:last] has an IoU with this box above the limit."""
    flat = kept.reshape(-1)
    for b in range(first, last):
        maybe = overlap16(flat, b * 5 * BLOCK, x0, y0, x1, y1, area, limit * F(0.9999))
        while maybe:  # the block test avoids the division, so it is only nearly exact
            t = lowest_bit(maybe)
            maybe &= maybe - 1
            w = max(F(0), min(x1, kept[b, 2, t]) - max(x0, kept[b, 0, t]))
            h = max(F(0), min(y1, kept[b, 3, t]) - max(y0, kept[b, 1, t]))
            if w * h / (area + kept[b, 4, t] - w * h) > limit:
                return True
    return False


@njit(**OPTIONS)
def _greedy(
    boxes: Any, order: Any, classes: Any, first: Any, count: Any, kept: Any, limit: Any, keep: Any, n: Any
) -> Any:
    """Go on with the greedy pass over `order`; return the number of boxes kept so far."""
    for o in range(order.shape[0]):
        if n >= keep.shape[0]:
            break
        i = order[o]
        c = classes[i]
        x0, y0, x1, y1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        area = (x1 - x0) * (y1 - y0)
        used = count[c]
        if not _overlaps(x0, y0, x1, y1, area, kept, first[c], first[c] + (used + BLOCK - 1) // BLOCK, limit):
            b, t = first[c] + used // BLOCK, used % BLOCK
            kept[b, 0, t], kept[b, 1, t], kept[b, 2, t], kept[b, 3, t], kept[b, 4, t] = x0, y0, x1, y1, area
            count[c] = used + 1
            keep[n] = i
            n += 1
    return n


@njit(**OPTIONS)
def _empty_blocks(classes: Any) -> Any:
    """Return the first block of every class, the boxes in use (none), and room for every box of each class."""
    number: Any = 0
    for i in range(classes.shape[0]):
        number = max(number, np.int64(classes[i]) + 1)
    first, count = np.zeros(number + 1, np.int64), np.zeros(number, np.int64)
    for i in range(classes.shape[0]):
        first[classes[i] + 1] += 1
    for c in range(number):
        first[c + 1] = first[c] + (first[c + 1] + BLOCK - 1) // BLOCK
    kept = np.empty((first[number], 5, BLOCK), np.float32)
    kept[:, :2], kept[:, 2:4], kept[:, 4] = F(1e30), F(-1e30), F(1)  # boxes that overlap none
    return first, count, kept


@njit(**OPTIONS)
def _buckets(keys: Any, packed_keys: Any) -> Any:
    """Distribute (key, index) pairs over buckets of rising keys; return where each bucket starts."""
    n = keys.shape[0]
    low, high = np.int64(keys[0]), np.int64(keys[0])
    for i in range(n):
        low, high = min(low, np.int64(keys[i])), max(high, np.int64(keys[i]))
    shift = 0
    while (high - low) >> shift >= BUCKETS:
        shift += 1
    start = np.zeros(BUCKETS + 1, np.int64)
    for i in range(n):
        start[((np.int64(keys[i]) - low) >> shift) + 1] += 1
    for b in range(BUCKETS):
        start[b + 1] += start[b]
    fill = start[:BUCKETS].copy()
    for i in range(n):
        bucket: Any = (np.int64(keys[i]) - low) >> shift
        packed_keys[fill[bucket]] = np.int64(keys[i]) << 32 | i
        fill[bucket] += 1
    return start


@njit(**OPTIONS)
def _sort(values: Any, start: Any, stop: Any) -> Any:
    """Sort values[start:stop] in place."""
    if stop - start > BATCH:  # scores crowd in one bucket
        values[start:stop] = np.sort(values[start:stop])
        return
    for i in range(start + 1, stop):
        value = values[i]
        j = i - 1
        while j >= start and values[j] > value:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = value


@njit(
    types.Array(types.int64, 1, "C")(
        source(types.float32, 2), source(types.uint32, 1), source(types.int32, 1), types.float32, types.int64
    ),
    **OPTIONS,
)
def _nms(boxes: Any, keys: Any, classes: Any, limit: Any, most: Any) -> Any:
    n = boxes.shape[0]
    first, count, kept = _empty_blocks(classes)
    pairs, order = np.empty(n, np.int64), np.empty(n, np.int64)
    start = _buckets(keys, pairs)
    keep = np.empty(min(most, n), np.int64)
    found, b = 0, 0
    while b < BUCKETS and found < keep.shape[0]:
        e = b + 1
        while e < BUCKETS and start[e] - start[b] < BATCH:
            e += 1
        for k in range(b, e):
            _sort(pairs, start[k], start[k + 1])
        for i in range(start[b], start[e]):
            order[i] = pairs[i] & 0xFFFFFFFF
        found = _greedy(boxes, order[start[b] : start[e]], classes, first, count, kept, limit, keep, found)
        b = e
    return keep[:found]


def _sort_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return keys whose rising order is the falling order of the scores."""
    bits = scores.view(np.int32)
    return ~(bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    iou_threshold: float,
    limit: int,
) -> NDArray[np.int64]:
    """Return the indices of the boxes that are kept, best score first; equal scores keep their order.

    A box goes where its IoU with a better one of its class is above the threshold. `boxes` (N, 4) as x1 y1 x2 y2,
    `scores` (N,) without NaN, `classes` (N,) not negative; where classes do not matter, give all the same.
    """
    boxes, scores = packed(boxes, np.float32, 2), packed(scores, np.float32, 1)
    classes = packed(classes, np.int32, 1)
    n = len(scores)
    if boxes.shape != (n, 4) or classes.shape != (n,):
        raise ValueError(f"boxes, scores, classes have shapes {boxes.shape}, {scores.shape}, {classes.shape}")
    if not n:
        return np.empty(0, np.int64)
    if classes.min() < 0:
        raise ValueError(f"class {classes.min()} is negative")
    keep: NDArray[np.int64] = _nms(boxes, _sort_keys(scores), classes, iou_threshold, limit)
    return keep
