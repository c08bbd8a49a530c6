"""The peaks of heat maps at full resolution, found without upsampling all of them.

Cubic interpolation is separable, and between two cells it goes beyond them by no more than a known part of the range
of the four cells that it looks at. Where that bound is below the best value so far, nothing is evaluated.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source

F: Final = np.float32
A: Final = -0.75
"""The cubic's parameter: torch's and OpenCV's."""
OVERSHOOT: Final = -A / 4
"""The most that the weights of the two outer cells sum up to, with the other sign."""
SLACK: Final = 1e-6
"""How far float32 may lift a value above its bound, as part of the greatest magnitude."""
MOST_PIXELS: Final = 16_384
"""The most pixels of one side of an upsampled heat map; over a larger box they are larger."""


@njit(**OPTIONS)
def _axis(size: Any, cells: Any) -> Any:
    """Return each pixel's four weights (size, 4), and the first pixel of each cell: that of cell i, from -1, is i + 1.

    A pixel is of the last cell whose centre is not after its own.
    """
    weights, first = np.empty((size, 4), np.float64), np.empty(cells + 2, np.int64)
    scale = np.float64(F(cells) / F(size))
    done = 0
    for x in range(size):
        position = scale * (x + 0.5) - 0.5
        cell = np.floor(position)
        t = position - cell
        for k in range(4):
            d = abs(t + 1 - k)
            inner, outer = ((A + 2) * d - (A + 3)) * d * d + 1, ((A * d - 5 * A) * d + 8 * A) * d - 4 * A
            weights[x, k] = inner if d <= 1 else outer
        while done <= cell + 1:
            first[done] = x
            done += 1
    first[done:] = size
    return weights, first


@njit(**OPTIONS)
def _extremes(heat: Any, low: Any, high: Any) -> Any:
    """Write the least and the greatest value of each column; return the column of the greatest of all."""
    for c in range(heat.shape[1]):
        low[c], high[c] = heat[0, c], heat[0, c]
    for r in range(1, heat.shape[0]):
        for c in range(heat.shape[1]):
            low[c], high[c] = min(low[c], heat[r, c]), max(high[c], heat[r, c])
    return np.argmax(high)


@njit(**OPTIONS)
def _around(i: Any, cells: Any) -> Any:
    """Return the four cells from which the pixels of cell i are made; beyond the ends the last one counts again."""
    return max(i - 1, 0), max(i, 0), min(i + 1, cells - 1), min(i + 2, cells - 1)


@njit(**OPTIONS)
def _bound(low: Any, high: Any, i: Any) -> Any:
    """Return a bound of the values between cells i and i + 1 where each cell's are within low..high."""
    a, b, c, d = _around(i, low.shape[0])
    most = np.float64(max(high[b], high[c]))
    least = np.float64(min(low[a], low[d]))
    return most + OVERSHOOT * max(most - least, 0.0)


@njit(**OPTIONS)
def _bound_of_columns(low: Any, high: Any, i: Any) -> Any:
    """Return a bound of the values between columns i and i + 1, at any row."""
    a, b, c, d = _around(i, low.shape[0])
    most = np.float64(max(max(high[a], high[b]), max(high[c], high[d])))
    least = np.float64(min(min(low[a], low[b]), min(low[c], low[d])))
    beyond = OVERSHOOT * (most - least)
    return most + beyond + OVERSHOOT * (most - least + 2 * beyond)


@njit(**OPTIONS)
def _better_of_columns(
    heat: Any, i: Any, x_weights: Any, x_first: Any, y_weights: Any, y_first: Any, profile: Any, slack: Any, best: Any
) -> Any:
    """Return the better of `best` (value, y, x) and the pixels of column cell i; of equals the first, row by row."""
    value, best_y, best_x = best
    rows = heat.shape[0]
    a, b, c, d = _around(i, heat.shape[1])
    for x in range(x_first[i + 1], x_first[i + 2] if i + 2 < x_first.shape[0] else x_weights.shape[0]):
        w = x_weights[x]
        for r in range(rows):
            profile[r] = w[0] * heat[r, a] + w[1] * heat[r, b] + w[2] * heat[r, c] + w[3] * heat[r, d]
        for j in range(-1, rows):
            if _bound(profile, profile, j) + slack < value:
                continue
            p, q, s, t = _around(j, rows)
            for y in range(y_first[j + 1], y_first[j + 2] if j + 2 < y_first.shape[0] else y_weights.shape[0]):
                v = y_weights[y]
                here = F(v[0] * profile[p] + v[1] * profile[q] + v[2] * profile[s] + v[3] * profile[t])
                if here > value or (here == value and (y < best_y or (y == best_y and x < best_x))):
                    value, best_y, best_x = here, y, x
    return value, best_y, best_x


@njit(**OPTIONS)
def _peak(
    heat: Any, x_weights: Any, x_first: Any, y_weights: Any, y_first: Any, low: Any, high: Any, profile: Any
) -> Any:
    """Return the greatest value of the upsampled heat map, and the row and column of the first pixel that has it."""
    columns = heat.shape[1]
    top = _extremes(heat, low, high)
    slack = SLACK * max(abs(np.float64(np.max(high))), abs(np.float64(np.min(low))))
    best = (F(-np.inf), np.int64(y_weights.shape[0]), np.int64(0))
    best = _better_of_columns(heat, top, x_weights, x_first, y_weights, y_first, profile, slack, best)
    for i in range(-1, columns):
        if i != top and _bound_of_columns(low, high, i) + slack >= best[0]:
            best = _better_of_columns(heat, i, x_weights, x_first, y_weights, y_first, profile, slack, best)
    return best


@njit(**OPTIONS)
def _side(low: Any, high: Any) -> Any:
    """Return a box's side, at least 1, and the whole number of pixels that its heat map has there."""
    side = high - low
    if not side > F(1):
        side = F(1)
    return side, np.int64(min(np.ceil(side), F(MOST_PIXELS)))


@njit(types.Array(types.float32, 3, "C")(source(types.float32, 4), source(types.float32, 2)), **OPTIONS)
def _keypoints(heatmaps: Any, boxes: Any) -> Any:
    n, k, rows, columns = heatmaps.shape
    points = np.empty((n, k, 3), np.float32)
    low, high, profile = np.empty(columns, np.float32), np.empty(columns, np.float32), np.empty(rows, np.float64)
    for i in range(n):
        width, pixels_wide = _side(boxes[i, 0], boxes[i, 2])
        height, pixels_high = _side(boxes[i, 1], boxes[i, 3])
        x_weights, x_first = _axis(pixels_wide, columns)
        y_weights, y_first = _axis(pixels_high, rows)
        x_step, y_step = width / F(pixels_wide), height / F(pixels_high)
        for j in range(k):
            value, y, x = _peak(heatmaps[i, j], x_weights, x_first, y_weights, y_first, low, high, profile)
            points[i, j, 0] = (F(x) + F(0.5)) * x_step + boxes[i, 0]
            points[i, j, 1] = (F(y) + F(0.5)) * y_step + boxes[i, 1]
            points[i, j, 2] = value
    return points


def keypoints(heatmaps: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the peak of each heat map as x, y and its value, float32 (N, K, 3).

    `heatmaps` float32 (N, K, h, w), `boxes` float32 (N, 4) as x1 y1 x2 y2 in the pixels that peaks are found to. Each
    map is upsampled over its box as torch's bicubic `interpolate` does, to the box's size rounded up (at most
    MOST_PIXELS); x and y are the middle of the first pixel that has the greatest value, as torchvision's
    `heatmaps_to_keypoints` gives them. Raises `ValueError` if shapes do not match.
    """
    heatmaps, boxes = packed(heatmaps, np.float32, 4), packed(boxes, np.float32, 2)
    if not heatmaps.shape[2] or not heatmaps.shape[3] or boxes.shape != (len(heatmaps), 4):
        shapes = f"{heatmaps.shape} and {boxes.shape}"
        raise ValueError(f"heat maps and boxes have shapes {shapes}; they are (N, K, h, w) and (N, 4)")
    points: NDArray[np.float32] = _keypoints(heatmaps, boxes)
    return points
