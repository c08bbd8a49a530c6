"""From logits to the scores of the labels that can matter, sampled at an image's pixels, and back to all labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import packed, source, target
from segserve_builder.kernels.crf_simd import LANES
from segserve_builder.kernels.crf_softmax import EMPTY, FUSED

if TYPE_CHECKING:
    from segserve_builder.sampling import Axis

F: Final = np.float32
LEAST_LOG: Final = -50.0
"""Log probabilities that are given out are not below it."""
DROPPED_LOG: Final = -60.0
"""That of a label that was left out: lower, so that it wins nowhere between pixels either."""


@njit(**FUSED)
def _widen(logits: Any, kept: Any, y: Any, left: Any, near: Any, far: Any, part: Any, crop: Any, wide: Any) -> Any:
    """Write row y of the kept labels' logits, sampled at all columns, one label after the other."""
    width = near.shape[0]
    for k in range(kept.shape[0]):
        line, out = logits[kept[k], y, left:], wide[k * width : (k + 1) * width]
        if crop:
            for x in range(width):
                out[x] = line[x]
        else:
            for x in range(width):
                out[x] = (F(1) - part[x]) * line[near[x]] + part[x] * line[far[x]]


@njit(**FUSED)
def _shrink_row(
    logits: Any, kept: Any, above: Any, below: Any, part: Any, left: Any, near: Any, far: Any, x_part: Any, line: Any,
    z: Any, best: Any,
) -> Any:  # fmt: skip
    """Do what `_sample_row` does where rows are fewer than the logits': those are blended before they are widened."""
    width = best.shape[0]
    for k in range(kept.shape[0]):
        a, b = logits[kept[k], above, left:], logits[kept[k], below, left:]
        for x in range(line.shape[0]):
            line[x] = (F(1) - part) * a[x] + part * b[x]
        o = z[k * width : (k + 1) * width]
        for x in range(width):
            value = (F(1) - x_part[x]) * line[near[x]] + x_part[x] * line[far[x]]
            o[x] = value
            best[x] = value if k == 0 or value > best[x] else best[x]


@njit(**FUSED)
def _sample_row(
    logits: Any, kept: Any, top: Any, left: Any, cell: Any, part: Any, below: Any, near: Any, far: Any,
    x_part: Any, crop: Any, wide: Any, held: Any, z: Any, best: Any,
) -> Any:  # fmt: skip
    """Write one pixel row of the kept labels' logits to z, and their largest to best.

    `wide[i]` holds the widened row held[i]: rows of even and of odd numbers take turns.
    """
    for y in (cell, below):
        if held[y & 1] != y:
            _widen(logits, kept, top + y, left, near, far, x_part, crop, wide[y & 1])
            held[y & 1] = y
    width = best.shape[0]
    upper, lower = wide[cell & 1], wide[below & 1]
    for k in range(kept.shape[0]):
        a, b = upper[k * width : (k + 1) * width], lower[k * width : (k + 1) * width]
        o = z[k * width : (k + 1) * width]
        for x in range(width):
            value = (F(1) - part) * a[x] + part * b[x]
            o[x] = value
            best[x] = value if k == 0 or value > best[x] else best[x]


_LABELS: Final = source(types.int64, 1)
_CELL: Final = source(types.uint32, 1)
_PART: Final = source(types.float32, 1)


@njit(
    target(types.float32, 1)(
        source(types.float32, 3), _LABELS, types.int64, types.int64, _CELL, _CELL, _PART,
        _CELL, _CELL, _PART, types.boolean, types.float32, target(types.float32, 1),
    ),
    **FUSED,
)  # fmt: skip
def _scores(
    logits: Any, kept: Any, top: Any, left: Any, above: Any, below: Any, y_part: Any, near: Any, far: Any, x_part: Any,
    crop: Any, scale: Any, scores: Any,
) -> Any:  # fmt: skip
    """Write scores in lanes where there is room for them, and return how near each label comes to a pixel's best."""
    labels, height, width = kept.shape[0], above.shape[0], near.shape[0]
    groups = (labels + LANES - 1) // LANES
    wide, held = np.empty((2, labels * width), np.float32), np.full(2, -1, np.int64)
    z, best = np.full(groups * LANES * width, EMPTY, np.float32), np.empty(width, np.float32)
    y_cells, line = np.int64(below[height - 1]) + 1, np.empty(np.int64(far[width - 1]) + 1, np.float32)
    nearest = np.full(labels * width, EMPTY, np.float32)
    for y in range(height):
        a, b = np.int64(above[y]), np.int64(below[y])
        if height < y_cells:
            _shrink_row(logits, kept, top + a, top + b, y_part[y], left, near, far, x_part, line, z, best)
        else:
            _sample_row(logits, kept, top, left, a, y_part[y], b, near, far, x_part, crop, wide, held, z, best)
        if scores.shape[0]:
            for g in range(groups):
                out = scores[(g * height + y) * width * LANES : (g * height + y + 1) * width * LANES]
                rows = z[g * LANES * width : (g + 1) * LANES * width]
                for x in range(width):
                    for k in range(LANES):
                        out[x * LANES + k] = (rows[k * width + x] - best[x]) * scale
        else:
            for k in range(labels):
                row, closest = z[k * width : (k + 1) * width], nearest[k * width : (k + 1) * width]
                for x in range(width):
                    value = row[x] - best[x]
                    closest[x] = value if value > closest[x] else closest[x]
    margins = np.full(labels, EMPTY, np.float32)
    for k in range(labels):
        for x in range(width):
            margins[k] = max(margins[k], nearest[k * width + x])
    return margins


def _between(axis: Axis) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float32]]:
    """Return the cells before and after each pixel, whose unsigned numbers are known not to count from the end."""
    cell, part, _ = axis.positions()
    near = cell.view(np.uint32)
    return near, np.minimum(near + np.uint32(1), np.uint32(axis.cells - 1)), part


def label_scores(
    logits: NDArray[np.float32], rows: Axis, columns: Axis, temperature: float, least: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the scores of the labels whose probability exceeds `least` somewhere, and these labels' numbers, rising.

    `logits` (C, h, w) is finite and has two labels or more. Scores are float32 (G, rows.size, columns.size, 8), label 8
    * g + k of those at [g, y, x, k]: log probabilities up to a number of each pixel's own, so that its best is 0. A
    label stays where its odds against the best exceed `least` at a pixel, which its probability is never above. Raises
    `ValueError` if the axes do not fit the logits.
    """
    if rows.first + rows.cells > logits.shape[1] or columns.first + columns.cells > logits.shape[2]:
        raise ValueError(f"logits of shape {logits.shape} do not cover {rows} and {columns}")
    logits = packed(logits, np.float32, 3)
    at = (rows.first, columns.first, *_between(rows), *_between(columns), columns.is_crop, F(1 / temperature))
    labels, nothing = np.arange(len(logits)), np.empty(0, np.float32)
    margins = _scores(logits, labels, *at, nothing)
    kept = np.flatnonzero(margins > np.log(least) * temperature)
    scores = np.empty((-(-len(kept) // LANES), rows.size, columns.size, LANES), np.float32)
    _scores(logits, kept, *at, scores.reshape(-1))
    return scores, kept


@njit(types.void(source(types.float32, 4), _LABELS, types.float32, target(types.float32, 3)), **FUSED)
def _spread(scores: Any, kept: Any, least: Any, out: Any) -> Any:
    for y in range(out.shape[1]):
        for i in range(kept.shape[0]):
            lanes, row, k = scores[i // LANES, y], out[kept[i], y], i % LANES
            for x in range(row.shape[0]):
                row[x] = max(lanes[x, k], least)


def label_planes(scores: NDArray[np.float32], kept: NDArray[np.int64], labels: int) -> NDArray[np.float32]:
    """Return log probabilities (labels, H, W) of the kept labels, bounded by LEAST_LOG; others get DROPPED_LOG.

    They are float32.
    """
    out = np.empty((labels, *scores.shape[1:3]), np.float32)
    for label in sorted(set(range(labels)) - set(kept.tolist())):
        out[label] = DROPPED_LOG
    _spread(scores, kept, LEAST_LOG, out)
    return out
