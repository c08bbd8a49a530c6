"""Overlapping tiles, weighted and added up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import njit, types

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.steps.tiling import Span, TileWeights

_SUMS: Final = target(types.float32, 3)
_CURVE: Final = source(types.float32, 1)


@njit(
    types.void(_SUMS, source(types.float32, 3), _CURVE, _CURVE, types.float32, *[types.int64] * 8),
    **OPTIONS,
)
def _add(
    sums: Any, tile: Any, vertical: Any, horizontal: Any, least: Any,
    y: Any, y_skip: Any, h: Any, y_old: Any, x: Any, x_skip: Any, w: Any, x_old: Any,
) -> Any:  # fmt: skip
    # Class by class, one pass of simple loops: sums and tile come from memory, and weights are computed meanwhile.
    for c in range(tile.shape[0]):
        for r in range(h):
            old, s, q = w if r < y_old else x_old, (y + r) % sums.shape[1], vertical[y_skip + r]
            if old:
                a, t = sums[c, s, x : x + old], tile[c, y_skip + r, x_skip : x_skip + old]
                p = horizontal[x_skip : x_skip + old]
                for k in range(a.shape[0]):
                    weight = q * p[k]
                    weight = weight if weight > least else least
                    a[k] += t[k] * weight
            if old < w:
                a, t = sums[c, s, x + old : x + w], tile[c, y_skip + r, x_skip + old : x_skip + w]
                p = horizontal[x_skip + old : x_skip + w]
                for k in range(a.shape[0]):
                    weight = q * p[k]
                    weight = weight if weight > least else least
                    a[k] = t[k] * weight


@njit(types.void(_SUMS, _SUMS, types.int64, types.int64), **OPTIONS)
def _divide(total: Any, weights: Any, first: Any, last: Any) -> Any:
    for c in range(total.shape[0]):
        for y in range(first, last):
            a, w = total[c, y], weights[0, y % weights.shape[1]]
            for k in range(a.shape[0]):
                a[k] /= w[k]


def add_tile(
    sums: NDArray[np.float32], tile: NDArray[np.float32], window: TileWeights, rows: Span, columns: Span
) -> None:
    """Add a tile (C, h, w), weighted, to the sums (C, S, W).

    Row y of the image is row y % S of the sums; S is at least the number of the tile's rows in the image. Pixels of no
    tile before this one get its value, whatever they were.
    """
    height, width = len(window.rows), len(window.columns)
    if tile.shape != (len(sums), height, width):
        raise ValueError(f"a tile has shape {tile.shape}; sums and weights are for {(len(sums), height, width)}")
    fits = rows.skip + rows.size <= height and columns.skip + columns.size <= width and rows.size <= sums.shape[1]
    if not fits or min(*rows.numbers(), *columns.numbers()) < 0 or columns.start + columns.size > sums.shape[2]:
        raise ValueError(f"{rows} and {columns} do not fit tiles of {height} x {width} and sums of {sums.shape}")
    where = (rows.start, rows.skip, rows.size, rows.old, columns.start, columns.skip, columns.size, columns.old)
    _add(sums, packed(tile, np.float32, 3), window.rows, window.columns, window.least, *where)


def divide_rows(total: NDArray[np.float32], weights: NDArray[np.float32], first: int, last: int) -> None:
    """Divide the rows first:last of `total` (C, H, W) by the weights (1, S, W), of which row y % S is of row y."""
    if weights.shape[0] != 1 or weights.shape[2] != total.shape[2] or not 0 <= first <= last <= total.shape[1]:
        raise ValueError(f"rows {first} to {last} of {total.shape} cannot be divided by weights of {weights.shape}")
    _divide(total, weights, first, last)
