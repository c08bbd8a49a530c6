"""Rotated rectangles: non-maximum suppression by their probabilistic IoU, and their masks.

The IoU is from Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union" (2021): a
rectangle stands for the normal distribution of its mean and covariance, and two have 1 minus their Hellinger distance.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source
from segserve_builder.kernels.rle import MAX_CHARACTERS, add_run, split, with_room, write_string

FARTHEST: Final = 100.0
"""Bhattacharyya distance from which rectangles have an IoU of 0."""


@njit(
    types.Array(types.int64, 1, "C")(source(types.float64, 2), source(types.int32, 1), types.float64, types.int64),
    **OPTIONS,
)
def _rotated_nms(gaussians: Any, classes: Any, farthest: Any, most: Any) -> Any:
    """Return the first `most` rows that no earlier one of their class is nearer to than `farthest`."""
    keep = np.empty(min(most, gaussians.shape[0]), np.int64)
    n: Any = 0
    for i in range(gaussians.shape[0]):
        if n == keep.shape[0]:
            break
        x, y, a, b, c = gaussians[i]
        own = a * b - c * c
        is_kept = True
        for j in range(i):
            if classes[j] != classes[i]:
                continue
            dx, dy = x - gaussians[j, 0], y - gaussians[j, 1]
            p, q, r = a + gaussians[j, 2], b + gaussians[j, 3], c + gaussians[j, 4]
            both = p * q - r * r
            near = 0.25 * (q * dx * dx + p * dy * dy - 2 * r * dx * dy)
            if both <= 0 or near >= farthest * both:  # what is left of the distance is not negative
                continue
            other = gaussians[j, 2] * gaussians[j, 3] - gaussians[j, 4] ** 2
            if own <= 0 or other <= 0:
                continue
            if near / both + 0.5 * math.log(both / (4 * math.sqrt(own * other))) < farthest:
                is_kept = False
                break
        if is_kept:
            keep[n] = i
            n += 1
    return keep[:n]


def rotated_nms(
    rectangles: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    iou_threshold: float,
    limit: int,
) -> NDArray[np.int64]:
    """Return the indices of the rectangles that are kept, best score first; equal scores keep their order.

    One goes where its probabilistic IoU with any better one of its class is above the threshold, also with one that
    goes itself (Fast NMS of YOLACT). `rectangles` (N, 5) as cx cy w h and an angle in radians from x to y, `scores` and
    `classes` (N,). Raises `ValueError` if shapes differ.
    """
    rectangles, scores = packed(rectangles, np.float32, 2), packed(scores, np.float32, 1)
    if rectangles.shape != (len(scores), 5) or classes.shape != scores.shape:
        raise ValueError(f"rectangles, scores, classes have shapes {rectangles.shape}, {scores.shape}, {classes.shape}")
    order = np.argsort(-scores, kind="stable")
    x, y, width, height, angle = rectangles[order].astype(np.float64).T
    cosine, sine, along, across = np.cos(angle), np.sin(angle), width**2 / 12, height**2 / 12
    gaussians = np.stack(
        [
            x,
            y,
            along * cosine**2 + across * sine**2,
            along * sine**2 + across * cosine**2,
            (along - across) * cosine * sine,
        ],
        axis=1,
    )
    distance = 1 - iou_threshold
    farthest = FARTHEST if distance >= 1 else min(-math.log1p(-(distance**2)), FARTHEST)
    kept: NDArray[np.int64] = order[_rotated_nms(gaussians, packed(classes[order], np.int32, 1), farthest, limit)]
    return kept


@njit(
    types.Tuple((types.Array(types.uint8, 1, "C"), types.Array(types.int64, 1, "C")))(
        source(types.float64, 3), types.int64, types.int64
    ),
    **OPTIONS,
)
def _fill(corners: Any, height: Any, width: Any) -> Any:
    out, offsets = np.empty(4096, np.uint8), np.zeros(corners.shape[0] + 1, np.int64)
    counts = np.empty(2 * width + 2, np.int32)
    p = 0
    for m in range(corners.shape[0]):
        n: Any = 0
        last: Any = 0
        for x in range(width):
            middle, low, high = x + 0.5, np.inf, -np.inf
            for k in range(4):
                x0, y0 = corners[m, k]
                x1, y1 = corners[m, (k + 1) % 4]
                if min(x0, x1) <= middle < max(x0, x1):
                    y = y0 + (middle - x0) * (y1 - y0) / (x1 - x0)
                    low, high = min(low, y), max(high, y)
            if low < high:
                start = np.int64(min(max(np.ceil(low - 0.5), 0.0), np.float64(height)))
                stop = np.int64(min(max(np.ceil(high - 0.5), 0.0), np.float64(height)))
                if start < stop:
                    n, last = add_run(counts, n, last, x * height + start, x * height + stop)
        counts[n] = height * width - last
        n += counts[n] > 0
        out = with_room(out, p, n * MAX_CHARACTERS)
        p = write_string(counts, n, out, p)
        offsets[m + 1] = p
    return out[:p], offsets


def fill_rles(corners: NDArray[np.float32], height: int, width: int) -> tuple[bytes, ...]:
    """Return COCO's compressed counts, for a mask of `height` x `width` each, of N convex quadrilaterals.

    `corners` float32 (N, 4, 2) as x and y in order, finite; a pixel is set if its centre lies inside.
    """
    text, offsets = _fill(packed(corners, np.float64, 3), height, width)
    return split(text, offsets)
