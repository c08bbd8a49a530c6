"""Non-maximum suppression by the IoU of masks, which is found on their run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.rle_reader import next_number


@njit(**OPTIONS)
def _runs_of(text: Any, p: Any, end: Any, start: Any, stop: Any, n: Any) -> Any:
    """Append the runs of set pixels of the counts text[p:end]; return how many there are then, and the counts' sum.

    The sum is -1 where a count is negative.
    """
    at, index = np.int64(0), 0
    before, last = np.int64(0), np.int64(0)
    while p < end:
        value, p = next_number(text, p, end)
        if index > 2:
            value += before
        before, last = last, value
        if value < 0:
            return n, np.int64(-1)
        if index & 1 and value > 0:
            start[n], stop[n] = at, at + value
            n += 1
        at += value
        index += 1
    return n, at


@njit(**OPTIONS)
def _extent(start: Any, stop: Any, first: Any, last: Any, height: Any, box: Any) -> Any:
    """Write top, bottom, left, right of the runs first to last, all 0 if there are none; return their area."""
    top, bottom, area = height, np.int64(0), np.int64(0)
    column = np.int64(start[first]) // height if last > first else 0
    left = column
    for r in range(first, last):
        while start[r] >= (column + 1) * height:
            column += 1
        top = min(top, start[r] - column * height)
        bottom = max(bottom, min(stop[r] - column * height, height))
        if stop[r] > (column + 1) * height:  # it goes on at the next column's top
            top = 0
        area += stop[r] - start[r]
    right = (np.int64(stop[last - 1]) - 1) // height + 1 if last > first else 0
    box[0], box[1], box[2], box[3] = min(top, bottom), bottom, left, right
    return area


@njit(**OPTIONS)
def _first_after(values: Any, low: Any, high: Any, pixel: Any) -> Any:
    """Return the first index of low to high whose value is above `pixel`; values rise."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] > pixel:
            high = middle
        else:
            low = middle + 1
    return low


@njit(**OPTIONS)
def _iou(start: Any, stop: Any, first: Any, area: Any, box: Any, a: Any, b: Any) -> Any:
    """Return the IoU of masks a and b: their runs are walked side by side, where both have any."""
    if min(box[a, 1], box[b, 1]) <= max(box[a, 0], box[b, 0]) or min(box[a, 3], box[b, 3]) <= max(box[a, 2], box[b, 2]):
        return 0.0
    low = max(start[first[a]], start[first[b]])
    high = min(stop[first[a + 1] - 1], stop[first[b + 1] - 1])
    i, i_end = _first_after(stop, first[a], first[a + 1], low), _first_after(start, first[a], first[a + 1], high - 1)
    j, j_end = _first_after(stop, first[b], first[b + 1], low), _first_after(start, first[b], first[b + 1], high - 1)
    shared = np.int64(0)
    while i < i_end and j < j_end:
        s, t = stop[i], stop[j]
        shared += max(np.int64(0), np.int64(min(s, t)) - np.int64(max(start[i], start[j])))
        i += s <= t
        j += t <= s
    return shared / (area[a] + area[b] - shared)


@njit(**OPTIONS)
def _parsed(text: Any, offsets: Any, height: Any, pixels: Any) -> Any:
    """Return all masks' runs, where each mask's begin, areas, boxes, and the first mask of another size, or -1."""
    number = offsets.shape[0] - 1
    start, stop = np.empty(text.shape[0] // 2 + 1, np.int32), np.empty(text.shape[0] // 2 + 1, np.int32)
    first, area, box = np.zeros(number + 1, np.int64), np.zeros(number, np.int64), np.zeros((number, 4), np.int64)
    for m in range(number):
        first[m + 1], total = _runs_of(text, offsets[m], offsets[m + 1], start, stop, first[m])
        if total != pixels:
            return start, stop, first, area, box, m
        area[m] = _extent(start, stop, first[m], first[m + 1], height, box[m])
    return start, stop, first, area, box, -1


_TEXT = (source(types.uint8, 1), source(types.int64, 1), source(types.int32, 1), types.int64, types.int64)


@njit(types.Tuple((target(types.float64, 1), types.int64))(*_TEXT, types.boolean, types.float64), **OPTIONS)
def _matrix(text: Any, offsets: Any, classes: Any, height: Any, pixels: Any, gaussian: Any, sigma: Any) -> Any:
    number = classes.shape[0]
    start, stop, first, area, box, wrong = _parsed(text, offsets, height, pixels)
    decay, most = np.ones(number), np.zeros(number)
    if wrong >= 0:
        return decay, wrong
    for j in range(number):
        worst = 0.0  # the largest iou² - most², so that one exponential is enough
        for i in range(j):
            if classes[i] != classes[j]:
                continue
            iou = _iou(start, stop, first, area, box, i, j)
            if iou > most[j]:
                most[j] = iou
            if gaussian:
                worst = max(worst, iou * iou - most[i] * most[i])
            elif most[i] < 1.0:  # a mask that equals a better one has no score left, and no say
                decay[j] = min(decay[j], (1.0 - iou) / (1.0 - most[i]))
        if gaussian:
            decay[j] = np.exp(-sigma * worst)
    return decay, wrong


@njit(types.Tuple((target(types.int64, 1), types.int64))(*_TEXT, types.float64, types.int64), **OPTIONS)
def _greedy(text: Any, offsets: Any, classes: Any, height: Any, pixels: Any, limit: Any, most: Any) -> Any:
    number = classes.shape[0]
    start, stop, first, area, box, wrong = _parsed(text, offsets, height, pixels)
    keep = np.empty(min(number, most), np.int64)
    found = 0
    if wrong >= 0:
        return keep[:0], wrong
    for j in range(number):
        if found == keep.shape[0]:
            break
        free = True
        for k in range(found):
            i = keep[k]
            if classes[i] == classes[j] and _iou(start, stop, first, area, box, i, j) > limit:
                free = False
                break
        if free:
            keep[found] = j
            found += 1
    return keep[:found], wrong


def matrix_decay(
    masks: Sequence[bytes], classes: NDArray[np.int32], height: int, width: int, *, gaussian: bool, sigma: float
) -> NDArray[np.float64]:
    """Return what the scores of N masks, best first, are to be multiplied with: Matrix NMS (SOLOv2, Wang et al. 2020).

    `masks` are COCO's compressed counts for `height` x `width` pixels. A mask's factor is the least, over the better
    ones of its class, of f(their IoU) / f(the better one's largest IoU with one better still), where f is exp(-sigma
    IoU²) or 1 - IoU. Raises `ValueError` if counts do not describe such a mask. The factors are float64 (N,).
    """
    decay, wrong = _matrix(*_joined(masks, classes), height, height * width, gaussian, sigma)
    _check(wrong, height, width)
    factors: NDArray[np.float64] = decay
    return factors


def greedy_masks(
    masks: Sequence[bytes], classes: NDArray[np.int32], height: int, width: int, iou_threshold: float, limit: int
) -> NDArray[np.int64]:
    """Return the first `limit` indices of masks, best first, without masks that have an IoU above the threshold with
    a better one of their class that is kept. Raises `ValueError` as `matrix_decay` does.

    They are int64 (M,).
    """
    keep, wrong = _greedy(*_joined(masks, classes), height, height * width, iou_threshold, limit)
    _check(wrong, height, width)
    kept: NDArray[np.int64] = keep
    return kept


def _joined(
    masks: Sequence[bytes], classes: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int32]]:
    classes = packed(classes, np.int32, 1)
    if len(masks) != len(classes):
        raise ValueError(f"there are {len(masks)} masks and {len(classes)} classes")
    ends = np.zeros(len(masks) + 1, np.int64)
    np.cumsum([len(counts) for counts in masks], out=ends[1:])
    return np.frombuffer(b"".join(masks), np.uint8), ends, classes


def _check(wrong: int, height: int, width: int) -> None:
    if wrong >= 0:
        raise ValueError(
            f"the counts of mask {wrong} do not add up to the {height * width} pixels of {height} x {width}"
        )
