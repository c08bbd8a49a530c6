"""Greedy non-maximum suppression: kept boxes in blocks of 16 per class, and a sort that goes only as far as needed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import lowest_bit, overlap16
from segserve_builder.kernels.compiled import OPTIONS, packed, source

F: Final = np.float32
BLOCK: Final = 16
BUCKETS: Final = 4096
BATCH: Final = 64
SAMPLE: Final = 128
SPARE: Final = 4  # candidates looked at first for every box that is to be kept: the others may never be
FAR: Final = F(1e30)


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
def add_box(kept: Any, block: Any, used: Any, x0: Any, y0: Any, x1: Any, y1: Any, area: Any) -> None:
    """Write a box as the used-th of the blocks from `block` on; a new one is filled with boxes that overlap none."""
    b, t = block + used // BLOCK, used % BLOCK
    if t == 0:
        for k in range(BLOCK):
            kept[b, 0, k], kept[b, 1, k], kept[b, 2, k], kept[b, 3, k], kept[b, 4, k] = FAR, FAR, -FAR, -FAR, F(1)
    kept[b, 0, t], kept[b, 1, t], kept[b, 2, t], kept[b, 3, t], kept[b, 4, t] = x0, y0, x1, y1, area


@njit(**OPTIONS)
def rooms(classes: Any, most: Any) -> Any:
    """Return where the blocks of every class begin, with room for each of its boxes or for `most`."""
    number: Any = 0
    for i in range(classes.shape[0]):
        number = max(number, np.int64(classes[i]) + 1)
    first = np.zeros(number + 1, np.int64)
    if number == 1:
        first[1] = classes.shape[0]
    else:
        for i in range(classes.shape[0]):
            first[classes[i] + 1] += 1
    for c in range(number):
        first[c + 1] = first[c] + (min(first[c + 1], most) + BLOCK - 1) // BLOCK
    return first


@njit(**OPTIONS)
def _greedy(
    boxes: Any, pairs: Any, classes: Any, first: Any, count: Any, kept: Any, limit: Any, keep: Any, n: Any
) -> Any:
    """Go on with the greedy pass over sorted pairs; return the number of boxes kept so far."""
    for o in range(pairs.shape[0]):
        if n >= keep.shape[0]:
            break
        i = pairs[o] & 0xFFFFFFFF
        c = classes[i]
        x0, y0, x1, y1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        area = (x1 - x0) * (y1 - y0)
        used = count[c]
        if not _overlaps(x0, y0, x1, y1, area, kept, first[c], first[c] + (used + BLOCK - 1) // BLOCK, limit):
            add_box(kept, first[c], used, x0, y0, x1, y1, area)
            count[c] = used + 1
            keep[n] = i
            n += 1
    return n


@njit(**OPTIONS)
def rising_key(bits: Any) -> Any:
    """Return a number for a float32's bits that rises as floats fall, the same for 0 and -0."""
    return -np.int64(bits) if bits >= 0 else np.int64(bits) + np.int64(2**31)


@njit(**OPTIONS)
def _cut(scores: Any, most: Any) -> Any:
    """Return a score that, judged by a sample, some times `most` of the scores are above."""
    n = scores.shape[0]
    step = n // SAMPLE
    rank = SPARE * most * SAMPLE // n + 1
    if step == 0 or rank >= SAMPLE // 2:
        return F(-np.inf)
    bits = scores.view(np.int32)
    sample = np.empty(SAMPLE, np.int64)
    for k in range(SAMPLE):
        sample[k] = rising_key(bits[k * step]) << 32 | k * step
    sample.sort()
    return scores[sample[rank - 1] & 0xFFFFFFFF]


@njit(**OPTIONS)
def _above(scores: Any, cut: Any, which: Any) -> Any:
    """Write the indices of the scores above `cut` to `which`; return how many they are."""
    n = 0
    for i in range(scores.shape[0]):
        if scores[i] > cut:
            which[n] = i
            n += 1
    return n


@njit(**OPTIONS)
def _up_to(scores: Any, cut: Any, which: Any) -> Any:
    """Write the indices of the scores that are not above `cut` to `which`; return how many they are."""
    n = 0
    for i in range(scores.shape[0]):
        if not scores[i] > cut:
            which[n] = i
            n += 1
    return n


@njit(**OPTIONS)
def _buckets(scores: Any, which: Any, pairs: Any) -> Any:
    """Distribute (key, index) pairs over buckets of falling scores; return where each bucket starts.

    The rising order of the pairs is the order of falling scores, and of rising indices if scores are equal.
    """
    n = which.shape[0]
    bits = scores.view(np.int32)
    lowest, highest = scores[which[0]], scores[which[0]]
    for k in range(n):
        lowest, highest = min(lowest, scores[which[k]]), max(highest, scores[which[k]])
    number = 16
    while number < n and number < BUCKETS:
        number *= 2
    scale = (number - 1) / max(np.float64(highest) - np.float64(lowest), 1e-300)
    start = np.zeros(number + 1, np.int64)
    bucket = np.empty(n, np.int32)
    for k in range(n):
        place = (np.float64(highest) - np.float64(scores[which[k]])) * scale
        bucket[k] = np.int32(place) if 0 <= place < number else 0  # if scores are infinite, it is not a number
        start[bucket[k] + 1] += 1
    for b in range(number):
        start[b + 1] += start[b]
    fill = start[:number].copy()
    for k in range(n):
        i = np.int64(which[k])
        pairs[fill[bucket[k]]] = rising_key(bits[i]) << 32 | i
        fill[bucket[k]] += 1
    return start


@njit(**OPTIONS)
def _sort(values: Any, crowded: Any) -> Any:
    """Sort values in place, which are nearly sorted unless they are crowded."""
    if crowded:
        values.sort()
        return
    for i in range(1, values.shape[0]):
        value = values[i]
        j = i - 1
        while j >= 0 and values[j] > value:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = value


@njit(
    types.Array(types.int64, 1, "C")(
        source(types.float32, 2), source(types.float32, 1), source(types.int32, 1), types.float32, types.int64
    ),
    **OPTIONS,
)
def _nms(boxes: Any, scores: Any, classes: Any, limit: Any, most: Any) -> Any:
    n = boxes.shape[0]
    first = rooms(classes, most)
    count = np.zeros(first.shape[0] - 1, np.int64)
    kept = np.empty((first[-1], 5, BLOCK), np.float32)
    keep = np.empty(min(most, n), np.int64)
    which, pairs = np.empty(n, np.int32), np.empty(n, np.int64)
    cut = _cut(scores, most)
    found = 0
    for half in range(2):
        if found == keep.shape[0]:
            break
        part = which[: _above(scores, cut, which) if half == 0 else _up_to(scores, cut, which)]
        if part.shape[0] == 0:
            continue
        start = _buckets(scores, part, pairs)
        last = start.shape[0] - 1
        b = 0
        while b < last and found < keep.shape[0]:
            e, crowded = b, False
            while e < last and start[e] - start[b] < BATCH:
                crowded |= start[e + 1] - start[e] > BATCH
                e += 1
            batch = pairs[start[b] : start[e]]
            _sort(batch, crowded)
            found = _greedy(boxes, batch, classes, first, count, kept, limit, keep, found)
            b = e
    return keep[:found]


def at_most(number: float) -> np.float32:
    """Return the largest float32 that is not above `number`: a float32 is above both or neither."""
    nearest = F(number)
    return nearest if float(nearest) <= number else np.nextafter(nearest, F(-np.inf))


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    iou_threshold: float,
    limit: int,
) -> NDArray[np.int64]:
    """Return the indices of the boxes that are kept, best score first; equal scores keep their order.

    A box goes where its IoU with a better one of its class, in float32, is above the threshold: these are the boxes
    that torchvision keeps, which compares with the threshold as a double. `boxes` (N, 4) as x1 y1 x2 y2, `scores`
    (N,) without NaN, `classes` (N,) not negative; where classes do not matter, give all the same.
    """
    boxes, scores, classes = checked(boxes, scores, classes)
    if not len(scores):
        return np.empty(0, np.int64)
    keep: NDArray[np.int64] = _nms(boxes, scores, classes, at_most(iou_threshold), limit)
    return keep


def checked(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Return the three as kernels take them; raises `ValueError` if shapes differ or a class is negative."""
    boxes, scores = packed(boxes, np.float32, 2), packed(scores, np.float32, 1)
    classes = packed(classes, np.int32, 1)
    n = len(scores)
    if boxes.shape != (n, 4) or classes.shape != (n,):
        raise ValueError(f"boxes, scores, classes have shapes {boxes.shape}, {scores.shape}, {classes.shape}")
    if n and classes.min() < 0:
        raise ValueError(f"class {classes.min()} is negative")
    return boxes, scores, classes
