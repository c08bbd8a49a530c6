"""Overlapping tiles of logits, weighted and summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

SIGMA_SCALE: Final = 0.125
LEAST_WEIGHT: Final = 1e-3
"""Least weight of a pixel, as in MONAI."""
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


@dataclass(frozen=True, slots=True)
class Span:
    """A tile's position along one side of the image, in pixels.

    The tile's pixels from `skip` on cover `size` pixels of the image from `start` on. The first `old` of these lie in
    earlier tiles as well; the first `done` lie in no later tile.
    """

    start: int
    skip: int
    size: int
    old: int
    done: int

    def numbers(self) -> tuple[int, ...]:
        """Return the fields in order, as kernels take them."""
        return astuple(self)


def _gaussian(size: int) -> NDArray[np.float32]:
    # In float32, as MONAI computes it.
    at = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    curve: NDArray[np.float32] = np.exp(at**2 / np.float32(-2 * (size * SIGMA_SCALE) ** 2))
    return curve


def _hann(size: int) -> NDArray[Any]:
    curve: NDArray[np.float64] = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return curve


def _linear(size: int) -> NDArray[Any]:
    at = np.arange(size) + 0.5
    curve: NDArray[np.float64] = np.minimum(at, size - at) * (2 / size)
    return curve


_CURVES: Final[dict[str, Callable[[int], NDArray[Any]]]] = {
    "gaussian": _gaussian,
    "hann": _hann,
    "linear": _linear,
    "constant": lambda size: np.ones(size),
}


@dataclass(frozen=True, slots=True)
class TileWeights:
    """Weights of a tile's pixels: the product of one float32 (h,) per row and one (w,) per column, at least `least`."""

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    least: np.float32

    @classmethod
    def of(cls, blend: str, height: int, width: int) -> TileWeights:
        """Return the weights of a tile of `height` x `width` logits; `blend` is an option of the stage `tile`."""
        curve = _CURVES[blend]
        return cls(curve(height).astype(np.float32), curve(width).astype(np.float32), np.float32(LEAST_WEIGHT))

    def weights(self) -> NDArray[np.float32]:
        """Return every pixel's weight, float32 (height, width)."""
        weights: NDArray[np.float32] = np.maximum(self.rows[:, None] * self.columns, self.least)
        return weights


def add_tile(
    sums: NDArray[np.float32], tile: NDArray[np.float32], window: TileWeights, rows: Span, columns: Span
) -> None:
    """Add a weighted tile, float32 (C, h, w), to the sums, float32 (C, S, W), in place.

    Row y of the image is row y % S of the sums; S is at least the number of the tile's rows in the image. Pixels that
    lie in no earlier tile are overwritten. Raises `ValueError` if the tile does not fit the sums and weights.
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
    """Divide rows first:last of `total`, float32 (C, H, W), in place by row y % S of the weights, float32 (1, S, W).

    Raises `ValueError` if shapes do not match or rows lie outside.
    """
    if weights.shape[0] != 1 or weights.shape[2] != total.shape[2] or not 0 <= first <= last <= total.shape[1]:
        raise ValueError(f"rows {first} to {last} of {total.shape} cannot be divided by weights of {weights.shape}")
    _divide(total, weights, first, last)
