"""Objects in a label map: connected regions of its classes, and their cuts by a watershed where objects touch.

The method is scikit-image's: the Euclidean distance to the nearest pixel outside the region, its peaks
(`peak_local_max` with a least distance, by region), and a flood from them (`watershed`). Each region is cut as if it
were alone in the image, whose edge does not count as outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.bits import lowest_bit
from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.regions import LABELS, flatten, link_rows, row_runs

if TYPE_CHECKING:
    from segserve_builder.kernels.regions import Connectivity

MOST_DISTANCE: Final = 4096
"""Larger distances, in pixels, count as this one: the flood's queue has a place for each squared distance."""
HIGHEST: Final = MOST_DISTANCE**2

_MAP: Final = target(types.int32, 2)
_BOXES: Final = target(types.int32, 2)
_CLASSES: Final = target(types.int32, 1)


class ObjectMap(NamedTuple):
    """Objects in an image: their numbers by pixel, from 1, 0 for no object; their boxes and classes, in that order.

    They are int32 (H, W), int32 (N, 4) as x1 y1 x2 y2 with the last column and row excluded, and int32 (N,).
    """

    numbers: NDArray[np.int32]
    boxes: NDArray[np.int32]
    classes: NDArray[np.int32]


def _regions(labels: Any, chosen: Any, min_area: Any, reach: Any, regions: Any) -> Any:
    h, w = labels.shape
    flat, size = labels.reshape(-1), h * w + 1
    start, stop, parent = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.uint32)
    label, row_first = np.empty(size, labels.dtype), np.zeros(h + 1, np.int64)
    n = 0
    for y in range(h):
        row_first[y] = n
        n = row_runs(flat, y * w, w, start, stop, label, n, chosen[0])
        link_rows(start, stop, label, parent, row_first[max(y - 1, 0)], row_first[y], n, reach)
    row_first[h] = n
    area, number = flatten(start, stop, parent, n), np.zeros(n, np.int32)
    found = 0
    for run in range(n):
        if parent[run] == run and chosen[label[run]] and area[run] >= min_area:
            found += 1
            number[run] = found
    boxes, classes = np.empty((found, 4), np.int32), np.empty(found, np.int32)
    for y in range(h):
        for run in range(row_first[y], row_first[y + 1]):
            own = number[parent[run]]
            if own == 0:
                continue
            regions[y, start[run] : stop[run]] = own
            box = boxes[own - 1]
            if parent[run] == run:  # a region's root is its first run
                box[0], box[1], box[2] = start[run], y, stop[run]
                classes[own - 1] = label[run]
            box[0], box[2], box[3] = min(box[0], start[run]), max(box[2], stop[run]), y + 1
    return boxes, classes


_regions_compiled = njit(
    [
        types.Tuple((_BOXES, _CLASSES))(
            source(element, 2), source(types.boolean, 1), types.int64, types.int64, target(types.int32, 2)
        )
        for element in (types.uint8, types.uint16)
    ],
    **OPTIONS,
)(_regions)


@njit(**OPTIONS)
def _row_distances(row: Any, start: Any, stop: Any, heights: Any, places: Any, begins: Any) -> None:
    """Turn the vertical distances of a row's pixels [start, stop), all of one region, into squared distances.

    They are the lower envelope of parabolas, one for each pixel and for the two that end the run.
    """
    first, last = max(start - 1, 0), min(stop, row.shape[0] - 1)
    for x in range(first, last + 1):
        inside = start <= x < stop
        heights[x - first] = np.int64(row[x]) * row[x] if inside else 0
    top = 0
    places[0], begins[0] = 0, 0
    for u in range(1, last - first + 1):
        while top >= 0:
            x, p = begins[top], places[top]
            if (x - p) * (x - p) + heights[p] <= (x - u) * (x - u) + heights[u]:
                break
            top -= 1
        if top < 0:
            top = 0
            places[0], begins[0] = u, 0
            continue
        p = places[top]
        # In floating point, which is exact here, a division takes a fraction of the time.
        begin = 1 + np.int64((u * u - p * p + heights[u] - heights[p]) / (2.0 * (u - p)))
        if begin <= last - first:
            top += 1
            places[top], begins[top] = u, begin
    for u in range(last - first, -1, -1):
        p = places[top]
        if start <= u + first < stop:
            row[u + first] = min((u - p) * (u - p) + heights[p], np.int64(HIGHEST))
        if u == begins[top]:
            top -= 1


@njit(types.void(source(types.int32, 2), _MAP), **OPTIONS)
def _squared_distances(regions: Any, squared: Any) -> None:
    """Write each pixel's squared distance to the nearest one of another region, by Meijster's two passes."""
    h, w = regions.shape
    most = np.int32(MOST_DISTANCE)
    for x in range(w):
        squared[0, x] = most
    for y in range(1, h):
        for x in range(w):
            above = min(squared[y - 1, x] + np.int32(1), most)
            squared[y, x] = above if regions[y, x] == regions[y - 1, x] else np.int32(1)
    for y in range(h - 2, -1, -1):
        for x in range(w):
            below = squared[y + 1, x] + np.int32(1) if regions[y, x] == regions[y + 1, x] else np.int32(1)
            squared[y, x] = min(squared[y, x], below)
    heights = np.empty(w + 2, np.int64)
    places, begins = np.empty(w + 2, np.int64), np.empty(w + 2, np.int64)
    for y in range(h):
        stop = 0
        while stop < w:
            start, own = stop, regions[y, stop]
            while stop < w and regions[y, stop] == own:
                stop += 1
            if own != 0:
                _row_distances(squared[y], start, stop, heights, places, begins)


@njit(**OPTIONS)
def _is_peak(y: Any, x: Any, regions: Any, squared: Any, boxes: Any, peaks: Any, min_distance: Any) -> Any:
    """Return whether a pixel is a peak, where the earlier ones of the map are known."""
    own, height = regions[y, x], squared[y, x]
    box = boxes[own - 1]
    for wide in range(2):
        reach = min_distance if wide else 1  # most pixels have a higher neighbour
        left, right = max(x - reach, box[0]), min(x + reach + 1, box[2])
        for k in range(2 * reach + 1):  # the nearest rows first
            row = y + ((k + 1) >> 1) * (1 if k & 1 else -1)
            if row < box[1] or row >= box[3]:
                continue
            for column in range(left, right):
                if regions[row, column] != own:
                    continue
                if squared[row, column] > height:
                    return False
                if peaks[row, column] and max(abs(row - y), abs(column - x)) < min_distance:
                    return False
    return True


@njit(**OPTIONS)
def _append(p: Any, level: Any, first: Any, last: Any, following: Any, filled: Any) -> None:
    """Append a pixel to the queue of its level."""
    word, bit = level >> 6, np.int64(1) << (level & 63)
    if filled[word] & bit:
        following[last[level]] = p
    else:
        first[level] = p
        filled[word] |= bit
    last[level] = p


@njit(**OPTIONS)
def _flood(numbers: Any, regions: Any, squared: Any, queued: Any, highest: Any, neighbours: Any) -> None:
    """Give every pixel that a queued one reaches within its region the number of a neighbour, higher pixels first.

    A pixel counts as at most as high as the one that it was reached from, so that levels only fall.
    """
    h, w = regions.shape
    number, region, height = numbers.reshape(-1), regions.reshape(-1), squared.reshape(-1)
    first, last = np.empty(highest + 1, np.int32), np.empty(highest + 1, np.int32)
    filled, following = np.zeros((highest >> 6) + 1, np.int64), np.empty(h * w, np.int32)
    for p in queued:
        _append(p, highest - height[p], first, last, following, filled)
    word = 0
    while word < filled.shape[0]:
        if filled[word] == 0:
            word += 1
            continue
        level = (word << 6) + lowest_bit(filled[word])
        p = np.int64(first[level])
        if first[level] == last[level]:
            filled[word] &= filled[word] - 1
        else:
            first[level] = following[p]
        y = p // w
        x = p - y * w
        for k in range(neighbours.shape[0]):
            if 0 <= y + neighbours[k, 0] < h and 0 <= x + neighbours[k, 1] < w:
                q = p + neighbours[k, 0] * w + neighbours[k, 1]
                if number[q] == 0 and region[q] == region[p]:
                    number[q] = number[p]
                    _append(q, max(level, highest - height[q]), first, last, following, filled)


@njit(
    types.Tuple((_BOXES, _CLASSES))(
        source(types.int32, 2), _BOXES, _CLASSES, types.int64, source(types.int64, 2), _MAP, _MAP
    ),
    **OPTIONS,
)
def _cut(regions: Any, boxes: Any, classes: Any, min_distance: Any, neighbours: Any, squared: Any, numbers: Any) -> Any:
    h, w = regions.shape
    peaks = np.empty(regions.size, np.int32)
    only, many = np.zeros(boxes.shape[0] + 1, np.int32), np.zeros(boxes.shape[0] + 1, np.bool_)
    has_highest = np.zeros(boxes.shape[0] + 1, np.bool_)
    n = np.int64(0)
    for y in range(h):
        for x in range(w):
            own = regions[y, x]
            if own == 0 or (has_highest[own] and squared[y, x] == HIGHEST):
                continue
            if _is_peak(y, x, regions, squared, boxes, numbers, min_distance):
                peaks[n] = y * w + x
                n += 1
                many[own] = only[own] != 0
                only[own], numbers[y, x] = n, n
                has_highest[own] |= squared[y, x] == HIGHEST
    highest, queued = np.int64(0), 0
    cut_boxes, cut_classes = np.empty((n, 4), np.int32), np.empty(n, np.int32)
    for k in range(n):
        y, x = peaks[k] // w, peaks[k] % w
        own = regions[y, x]
        cut_boxes[k, 0], cut_boxes[k, 1], cut_boxes[k, 2], cut_boxes[k, 3] = x, y, x + 1, y + 1
        cut_classes[k] = classes[own - 1]
        if many[own]:
            highest = max(highest, np.int64(squared[y, x]))
            peaks[queued] = peaks[k]
            queued += 1
    _flood(numbers, regions, squared, peaks[:queued], highest, neighbours)
    for y in range(h):
        for x in range(w):
            own = regions[y, x]
            if own == 0:
                continue
            if not many[own]:
                numbers[y, x] = only[own]
            box = cut_boxes[numbers[y, x] - 1]
            box[0], box[1] = min(box[0], x), min(box[1], y)
            box[2], box[3] = max(box[2], x + 1), max(box[3], y + 1)
    return cut_boxes, cut_classes


_BY_EDGES: Final = ((-1, 0), (0, -1), (0, 1), (1, 0))
_BY_CORNERS: Final = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def find_regions(
    labels: NDArray[Any], chosen: NDArray[np.bool_], connectivity: Connectivity, min_area: int
) -> ObjectMap:
    """Return the connected regions of the chosen labels that have at least `min_area` pixels, by their first pixels.

    `labels` is uint8 or uint16 (H, W), `chosen` bool (256,) or (65536,) says for each label whether it is chosen.
    Raises `ValueError` for labels of another type.
    """
    if labels.dtype not in LABELS or len(chosen) != 256**labels.dtype.itemsize:
        raise ValueError(f"labels are {labels.dtype}, chosen {len(chosen)}; uint8 with 256, uint16 with 65536 fit")
    regions = np.zeros(labels.shape, np.int32)
    if not labels.size:
        return ObjectMap(regions, np.empty((0, 4), np.int32), np.empty(0, np.int32))
    reach = 1 if connectivity == 8 else 0
    boxes, classes = _regions_compiled(packed(labels, labels.dtype, 2), chosen, min_area, reach, regions)
    return ObjectMap(regions, boxes, classes)


def cut_regions(regions: ObjectMap, min_distance: int, connectivity: Connectivity) -> ObjectMap:
    """Return the parts of each region that a watershed makes of it, one for each peak, by their peaks' pixels.

    A peak is a pixel with no higher one of its region in the square of `min_distance` pixels around it, height being
    the distance to the nearest pixel outside the region. All pixels that are farther from it than `MOST_DISTANCE` are
    equally high and have one peak, the first of them. If other peaks of one region are nearer to each other than
    `min_distance`, along both axes, the first stays, row by row. The flood takes higher pixels first, none of them as
    higher than the one that it was reached from, and of equally high ones the one that was reached first: peaks row by
    row, then neighbours in the order up, left, right, down, and with `connectivity` 8 the corners in the same order.
    """
    numbers = np.zeros_like(regions.numbers)
    if not len(regions.boxes):
        return regions
    squared = np.empty_like(regions.numbers)
    _squared_distances(regions.numbers, squared)
    neighbours = np.array(_BY_EDGES if connectivity == 4 else _BY_EDGES + _BY_CORNERS, np.int64)
    return ObjectMap(numbers, *_cut(*regions, min_distance, neighbours, squared, numbers))
