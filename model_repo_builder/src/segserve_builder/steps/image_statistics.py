"""Statistics of an image from a grid of its pixels, each with its four neighbours."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.values import ImageStatistics

GRID: Final = 64
"""Most rows, and most columns, of the grid."""
LEVELS: Final = 4096
"""Steps from 0 to 1 in which the median of the Laplacians is known."""
_MOST: Final = {1: 255, 2: 65535}
"""Largest value of a pixel of so many bytes."""


def measure(pixels: NDArray[Any]) -> ImageStatistics:
    """Return the statistics of uint8 or uint16 pixels (H, W, C), at least one, in any layout in memory.

    What cannot be shared, as in a black image, is shared in halves.
    """
    # Not a numba kernel: `pre` needs no other one, and numba takes 100 MiB of each of its processes. Calls are few, and
    # reductions are not arrays' methods: between two requests all code has left the processor's caches, and a call
    # takes several times as long as in a loop.
    height, _, channels = pixels.shape
    row_step = -(-height // GRID)
    points = _with_neighbours(pixels, row_step)
    here, above, below, left, right = points
    row_sums = np.add.reduce(here, axis=1, dtype=np.int64)
    total, (rows, columns) = int(np.add.reduce(row_sums)), here.shape
    mean = total / here.size
    contrast, detail, top_brightness = 0.0, 0.0, 0.5
    if mean > 0.0:
        contrast = math.sqrt(max(_energy(here) / here.size - mean * mean, 0.0)) / mean
        laplacians, middle = np.abs(4 * here - np.add.reduce(points[1:])).ravel(), (here.size - 1) // 2
        laplacians.partition(middle)
        detail = min(int(laplacians[middle] * (LEVELS / (4.0 * mean))), LEVELS - 1) / LEVELS
        upper = -(-((height + 1) // 2) // row_step)
        if upper < rows:
            of_top = int(np.add.reduce(row_sums[:upper]))
            top, bottom = of_top / (upper * columns), (total - of_top) / ((rows - upper) * columns)
            top_brightness = top / (top + bottom)
    vertical, horizontal = _energy(below - above), _energy(right - left)
    vertical_gradients = vertical / (vertical + horizontal) if vertical + horizontal > 0.0 else 0.5
    brightness = mean / channels / _MOST[pixels.dtype.itemsize]
    return ImageStatistics(brightness, contrast, detail, vertical_gradients, top_brightness)


def _with_neighbours(pixels: NDArray[Any], row_step: int) -> NDArray[np.int32]:
    """Return the sums over channels at each point of the grid, and above, below, left and right of it.

    A neighbour beyond the image's edge is the point itself.
    """
    step = -(-pixels.shape[1] // GRID)
    planes = pixels.transpose(2, 0, 1)
    here = planes[:, ::row_step, ::step]
    _, rows, columns = here.shape
    # Slices, as the indices of all points take five times as long.
    around = np.empty((5, *here.shape), pixels.dtype)
    around[0] = here
    around[1:] = around[0]
    around[1, :, 1:] = planes[:, row_step - 1 :: row_step, ::step][:, : rows - 1]
    below = planes[:, 1::row_step, ::step]
    around[2, :, : below.shape[1]] = below
    around[3, :, :, 1:] = planes[:, ::row_step, step - 1 :: step][:, :, : columns - 1]
    right = planes[:, ::row_step, 1::step]
    around[4, :, :, : right.shape[2]] = right
    summed: NDArray[np.int32] = np.add.reduce(around, axis=1, dtype=np.int32)
    return summed


def _energy(values: NDArray[np.int32]) -> float:
    # Exact: 4,096 squares of three channels' 16 bits have 48 bits.
    exact = values.ravel().astype(np.float64)
    return float(exact @ exact)
