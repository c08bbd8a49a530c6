"""The guided filter, on 8 labels at once, and its fast form that filters at a lower resolution.

He, Sun and Tang, Guided Image Filtering (2010); He and Sun, Fast Guided Filter (2015). Windows are boxes cut off at the
edges; sums run in float64, since a variance is a small difference of large numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import packed, source, target
from segserve_builder.kernels.crf_simd import LANES, line8, scale8, sum8
from segserve_builder.kernels.crf_softmax import FUSED

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32
SUMS: Final = 2 * LANES + 2
"""Of every pixel: 8 values, the guide times each, the guide and its square."""
PAIR: Final = 2 * LANES
"""Of every pixel: 8 slopes and 8 offsets."""
LEAST: Final = F(1e-6)
"""The filter is linear and may leave 0 to 1: no probability is below it."""


@njit(**FUSED)
def _grey_row(pixels: Any, out: Any) -> Any:
    """Write a row's luma (ITU-R BT.601), 0 to 1."""
    for x in range(out.shape[0]):
        luma = F(0.299) * F(pixels[x, 0]) + F(0.587) * F(pixels[x, 1]) + F(0.114) * F(pixels[x, 2])
        out[x] = luma * F(1 / 255)


@njit(**FUSED)
def _add_row(values: Any, pixels: Any, grey: Any, sign: Any, column: Any) -> Any:
    """Add a row, or take it away, from what every column of the window sums up."""
    _grey_row(pixels, grey)
    for x in range(grey.shape[0]):
        g = np.float64(grey[x]) * sign
        at = x * SUMS
        for k in range(LANES):
            v = np.float64(values[x * LANES + k])
            column[at + k] += v * sign
            column[at + LANES + k] += v * g
        column[at + 2 * LANES] += g
        column[at + 2 * LANES + 1] += g * np.float64(grey[x])


@njit(**FUSED)
def _accumulate(column: Any, step: Any, total: Any) -> Any:
    """Write the running sums of each of `step` quantities along a row; total[:step] stays 0."""
    for t in range(column.shape[0]):
        total[t + step] = total[t] + column[t]


@njit(**FUSED)
def _fit_row(total: Any, radius: Any, high: Any, eps: Any, pairs: Any) -> Any:
    """Write the slope and the offset of every label that fit each window of a row best."""
    width = pairs.shape[0] // PAIR
    for x in range(width):
        first, stop = max(x - radius, 0), min(x + radius + 1, width)
        a, b = total[first * SUMS : (first + 1) * SUMS], total[stop * SUMS : (stop + 1) * SUMS]
        part = 1 / np.float64((stop - first) * high)
        mean = (b[2 * LANES] - a[2 * LANES]) * part
        scale = 1 / ((b[2 * LANES + 1] - a[2 * LANES + 1]) * part - mean * mean + eps)
        out = pairs[x * PAIR : (x + 1) * PAIR]
        for k in range(LANES):
            value = (b[k] - a[k]) * part
            slope = ((b[LANES + k] - a[LANES + k]) * part - mean * value) * scale
            out[k] = slope
            out[LANES + k] = value - slope * mean


@njit(**FUSED)
def _mean_row(total: Any, radius: Any, high: Any, means: Any) -> Any:
    width = means.shape[0] // PAIR
    for x in range(width):
        first, stop = max(x - radius, 0), min(x + radius + 1, width)
        part = 1 / np.float64((stop - first) * high)
        a, b, out = (
            total[first * PAIR : (first + 1) * PAIR],
            total[stop * PAIR : (stop + 1) * PAIR],
            means[x * PAIR : (x + 1) * PAIR],
        )
        for k in range(PAIR):
            out[k] = (b[k] - a[k]) * part


@njit(
    types.void(source(types.float32, 2), source(types.uint8, 3), types.int64, types.float64, target(types.float32, 2)),
    **FUSED,
)
def _coefficients(values: Any, guide: Any, radius: Any, eps: Any, means: Any) -> Any:
    height, width = guide.shape[:2]
    grey = np.empty(width, np.float32)
    column, total = np.zeros(width * SUMS, np.float64), np.zeros((width + 1) * SUMS, np.float64)
    pair_column, pair_total = np.zeros(width * PAIR, np.float64), np.zeros((width + 1) * PAIR, np.float64)
    slots = min(2 * radius + 1, height)
    ring = np.zeros((slots, width * PAIR), np.float32)
    for y in range(min(radius, height)):
        _add_row(values[y], guide[y], grey, 1.0, column)
    for y in range(height + radius):
        if y > 2 * radius:
            gone = ring[(y - 2 * radius - 1) % slots]
            for t in range(gone.shape[0]):
                pair_column[t] -= gone[t]
        if y < height:
            pairs = ring[y % slots]
            if y + radius < height:
                _add_row(values[y + radius], guide[y + radius], grey, 1.0, column)
            if y > radius:
                _add_row(values[y - radius - 1], guide[y - radius - 1], grey, -1.0, column)
            _accumulate(column, SUMS, total)
            _fit_row(total, radius, min(y + radius + 1, height) - max(y - radius, 0), eps, pairs)
            for t in range(pairs.shape[0]):
                pair_column[t] += pairs[t]
        if y >= radius:
            _accumulate(pair_column, PAIR, pair_total)
            high = min(y + 1, height) - max(y - 2 * radius, 0)
            _mean_row(pair_total, radius, high, means[y - radius])


@njit(**FUSED)
def _log_row(e: Any) -> Any:
    """Replace a row of normal positive numbers by their logarithms, to about 1e-6."""
    bits = e.view(np.int32)
    for t in range(e.shape[0]):
        # x = m * 2**n with m within [sqrt(1/2), sqrt(2)), and log m = 2 artanh((m - 1) / (m + 1))
        n = (bits[t] - np.int32(0x3F3504F3)) >> np.int32(23)
        bits[t] -= n << np.int32(23)
        s = (e[t] - F(1)) / (e[t] + F(1))
        q = s * s
        series = F(2) + q * (F(0.66666667) + q * (F(0.4) + q * (F(0.28571429) + q * F(0.2222222))))
        e[t] = s * series + F(n) * F(0.69314718)


@njit(
    types.void(
        source(types.float32, 3), source(types.uint8, 3), source(types.int32, 1), source(types.float32, 1),
        source(types.int32, 1), source(types.float32, 1), target(types.float32, 3),
    ),
    **FUSED,
)  # fmt: skip
def _apply(means: Any, guide: Any, y_cell: Any, y_part: Any, x_cell: Any, x_part: Any, scores: Any) -> Any:
    height, width = guide.shape[:2]
    groups, low, wide = means.shape
    grey, line = np.empty(width, np.float32), np.empty(wide, np.float32)
    row = width * LANES
    e = np.empty(groups * row, np.float32)
    for y in range(height):
        _grey_row(guide[y], grey)
        cell, part = np.int64(y_cell[y]), y_part[y]
        for g in range(groups):
            above, below = means[g, cell], means[g, min(cell + 1, low - 1)]
            for t in range(wide):
                line[t] = above[t] + part * (below[t] - above[t])
            for x in range(width):
                c = np.int64(x_cell[x])
                far = min((c + 1) * PAIR, wide - PAIR)
                line8(line, c * PAIR, far, x_part[x], grey[x], LEAST, e, g * row + x * LANES)
        for i in range(0, row, LANES):
            total = F(0)
            for at in range(i, e.shape[0], row):
                total += sum8(e, at)
            for at in range(i, e.shape[0], row):
                scale8(e, at, F(1) / total)
        _log_row(e)
        for g in range(groups):
            own, out = e[g * row : (g + 1) * row], scores[g, y]
            for t in range(row):
                out[t] = own[t]


def guided_filter(
    values: NDArray[np.float32],
    guide: NDArray[np.uint8],
    radius: int,
    eps: float,
    full: NDArray[np.uint8],
    rows: Axis,
    columns: Axis,
) -> NDArray[np.float32]:
    """Return the log probabilities (G, H, W, 8) of `full`, an image uint8 (H, W, 3).

    The luma of `guide`, uint8 (h, w, 3), guides the filtering of the probabilities `values` (G, h, w, 8), with windows
    of 2 * radius + 1 pixels and `eps` in squares of a luma from 0 to 1. What was fitted is sampled bilinearly at the
    pixels of `full` by `rows` and `columns`, and applied to its luma there. What comes out below LEAST counts as it.
    Raises `ValueError` if shapes do not match.
    """
    groups, height, width, lanes = values.shape
    for image, shape in ((guide, (height, width, 3)), (full, (rows.size, columns.size, 3))):
        if image.dtype != np.uint8 or image.shape != shape:
            raise ValueError(f"the image is {image.dtype} {image.shape}; uint8 {shape} is expected")
    if lanes != LANES or radius < 0 or eps <= 0:
        raise ValueError(f"{lanes} lanes, radius {radius}, eps {eps}; allowed are {LANES}, 0 or more, above 0")
    guide, full, values = packed(guide, np.uint8, 3), packed(full, np.uint8, 3), packed(values, np.float32, 4)
    means = np.empty((groups, height, width * PAIR), np.float32)
    for group, out in zip(values, means, strict=True):
        _coefficients(group.reshape(height, width * LANES), guide, radius, eps, out)
    scores = np.empty((groups, rows.size, columns.size * LANES), np.float32)
    _apply(means, full, *rows.positions()[:2], *columns.positions()[:2], scores)
    return scores.reshape(groups, rows.size, columns.size, LANES)
