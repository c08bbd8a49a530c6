"""Soft non-maximum suppression, lazily: a box is compared with those kept before it only once it may be the next."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import lowest_bit, overlap16
from segserve_builder.kernels.compiled import OPTIONS, source, target
from segserve_builder.kernels.nms import BLOCK, add_box, checked, rooms

F: Final = np.float32
D: Final = np.float64


@njit(**OPTIONS)
def _decayed(
    box: Any, kept: Any, block: Any, seen: Any, used: Any, score: Any, linear: Any, limit: Any, sigma: Any
) -> Any:
    """Return the score that is left once the kept boxes `seen` to `used` of its class have lowered it, in their order.

    The weights are the paper's (Bodla et al. 2017): 1 - IoU above the limit, or exp(-IoU² / sigma).
    """
    flat = kept.reshape(-1)
    area32 = (box[2] - box[0]) * (box[3] - box[1])
    x0, y0, x1, y1 = D(box[0]), D(box[1]), D(box[2]), D(box[3])
    area = (x1 - x0) * (y1 - y0)
    for b in range(seen // BLOCK, (used + BLOCK - 1) // BLOCK):
        k = block + b
        maybe = overlap16(flat, k * 5 * BLOCK, box[0], box[1], box[2], box[3], area32, F(limit * 0.9999))
        maybe &= np.int64(-1) << max(seen - b * BLOCK, 0)
        while maybe:
            t = lowest_bit(maybe)
            maybe &= maybe - 1
            a0, b0, a1, b1 = D(kept[k, 0, t]), D(kept[k, 1, t]), D(kept[k, 2, t]), D(kept[k, 3, t])
            w, h = max(0.0, min(x1, a1) - max(x0, a0)), max(0.0, min(y1, b1) - max(y0, b0))
            iou = w * h / ((a1 - a0) * (b1 - b0) + area - w * h)
            if not linear:
                score *= np.exp(-(iou * iou) / sigma)
            elif iou > limit:
                score *= 1.0 - iou
    return score


@njit(**OPTIONS)
def _before(scores: Any, i: Any, j: Any) -> Any:
    return scores[i] > scores[j] or (scores[i] == scores[j] and i < j)


@njit(**OPTIONS)
def _sift(heap: Any, n: Any, at: Any, scores: Any) -> None:
    """Move heap[at] down to where it belongs among n indices; the best is at 0."""
    i = heap[at]
    while 2 * at + 1 < n:
        child = 2 * at + 1
        if child + 1 < n and _before(scores, heap[child + 1], heap[child]):
            child += 1
        if not _before(scores, heap[child], i):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = i


@njit(**OPTIONS)
def _heap(scores: Any, least: Any) -> Any:
    """Return the indices of the scores above `least` as a heap."""
    heap = np.empty(scores.shape[0], np.int64)
    n = 0
    for i in range(scores.shape[0]):
        if scores[i] > least:
            heap[n] = i
            n += 1
    for at in range(n // 2 - 1, -1, -1):
        _sift(heap, n, at, scores)
    return heap[:n]


@njit(
    types.Tuple((target(types.int64, 1), target(types.float32, 1)))(
        source(types.float32, 2),
        source(types.float32, 1),
        source(types.int32, 1),
        types.boolean,
        types.float64,
        types.float64,
        types.float64,
        types.int64,
    ),
    **OPTIONS,
)
def _soft_nms(boxes: Any, scores: Any, classes: Any, linear: Any, limit: Any, sigma: Any, least: Any, most: Any) -> Any:
    first = rooms(classes, most)
    count = np.zeros(first.shape[0] - 1, np.int64)
    kept = np.empty((first[-1], 5, BLOCK), np.float32)
    now, seen = scores.astype(np.float64), np.zeros(boxes.shape[0], np.int64)
    heap = _heap(now, least)
    n = heap.shape[0]
    keep, left = np.empty(min(most, n), np.int64), np.empty(min(most, n), np.float32)
    found = 0
    while n > 0 and found < keep.shape[0]:
        i = heap[0]
        c = classes[i]
        used = count[c]
        if seen[i] < used:
            now[i] = _decayed(boxes[i], kept, first[c], seen[i], used, now[i], linear, limit, sigma)
            seen[i] = used
        else:
            x0, y0, x1, y1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
            add_box(kept, first[c], used, x0, y0, x1, y1, (x1 - x0) * (y1 - y0))
            count[c] = used + 1
            keep[found], left[found] = i, now[i]
            found += 1
            now[i] = least
        if now[i] <= least:
            n -= 1
            heap[0] = heap[n]
        _sift(heap, n, 0, now)
    return keep[:found], left[:found]


def soft_nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    method: Literal["linear", "gaussian"],
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    limit: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the indices of the boxes whose score stays above the threshold, best first, and the scores that stay.

    Every box lowers the scores of boxes of its class that it overlaps: linearly where their IoU is above
    `iou_threshold`, or by a Gaussian of the IoU with `sigma`. Of equal scores, the first is taken first. `boxes` (N, 4)
    as x1 y1 x2 y2, `scores` (N,) without NaN, `classes` (N,) not negative; thresholds are not negative. Indices are
    int64 (M,), scores float32 (M,). Raises `ValueError` if shapes do not match.
    """
    boxes, scores, classes = checked(boxes, scores, classes)
    if sigma <= 0 or score_threshold < 0:
        raise ValueError(f"sigma is {sigma}, the score threshold {score_threshold}; allowed are > 0 and >= 0")
    linear = method == "linear"
    overlap = iou_threshold if linear else 0.0
    keep, left = _soft_nms(boxes, scores, classes, linear, overlap, sigma, score_threshold, limit)
    return keep, left
