"""Bilinear sampling of a grid over the network's input at the pixels of the original image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from segserve_builder.values import Float32, Int32, ResizeTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a bilinear sampling.

    Pixel x of `size` lies at `(x + 0.5) * scale + bias` cells from the centre of cell `first`. Only the `cells` cells
    from `first` on are sampled, those whose centres show the image; beyond them the nearest one is used, so that
    padding never bleeds into an answer.
    """

    size: int
    first: int
    cells: int
    scale: float
    bias: float

    @classmethod
    def of(cls, size: int, inner: int, start: int, total: int, grid: int, align_corners: bool = False) -> Axis:
        """Return the axis of an image of `size` pixels.

        It was resized to `inner` and put at `start` of an input of `total` pixels, which `grid` cells cover. They do
        it as areas side by side, or with `align_corners` as points, the first and the last on the centres of the
        input's first and last pixel. Both mappings, from image to input and from input to cells, are one line, so
        that one interpolation does for both.
        """
        if align_corners:
            return cls._of_points(size, inner, start, total, grid)
        first = -((total - 2 * start * grid) // (2 * total))
        last = (2 * (start + inner) * grid - total) // (2 * total)
        if last < first:  # the image is narrower than a cell and shows no centre of one
            first = last = min((2 * start + inner) * grid // (2 * total), grid - 1)
        bias = (start * grid - first * total) / total - 0.5
        return cls(size, first, last - first + 1, inner * grid / (total * size), bias)

    @classmethod
    def _of_points(cls, size: int, inner: int, start: int, total: int, grid: int) -> Axis:
        """Return the axis where pixel u of the input lies at u * (grid - 1) / (total - 1) cells."""
        import numpy as np

        gaps, between = grid - 1, max(total - 1, 1)
        if total == 1:  # torch puts the only pixel on the first cell
            gaps = 0
        first = max(-((1 - 2 * start) * gaps // (2 * between)), 0)
        last = min((2 * (start + inner) - 1) * gaps // (2 * between), gaps)
        if last < first:
            first = last = min(((2 * start + inner - 1) * gaps + between) // (2 * between), gaps)
        # torch rounds the step to float32 before it multiplies; the half pixel of the bias must cancel against that.
        step = float(np.float32(gaps / between))
        return cls(size, first, last - first + 1, inner / size * step, (start - 0.5) * step - first)

    @property
    def is_crop(self) -> bool:
        """Whether every pixel is exactly one cell."""
        return self.scale == 1 and self.bias == -0.5

    def positions(self) -> tuple[Int32, Float32, Int32]:
        """Return each pixel's cell, counted from `first`, its part of the way to the next, and each cell's first pixel.

        They are shaped (size,), (size,) and (cells + 1,); cell i holds the pixels from the i-th to before the next.
        Product and sum are rounded once, as by the fused multiply-add of torch's bilinear `interpolate`. The arrays are
        cached and shared: do not write to them. Cells are int32, parts float32.
        """
        return _positions(self)

    def nearest(self) -> Int32:
        """Return each pixel's cell by torch's nearest interpolation, counted from `first`, int32 (size,)."""
        import numpy as np

        position = np.arange(self.size, dtype=np.float32) * np.float32(self.scale) + np.float32(self.bias + 0.5)
        cells: Int32 = np.clip(np.floor(position), 0, self.cells - 1).astype(np.int32)
        return cells


@lru_cache(maxsize=32)
def _positions(axis: Axis) -> tuple[Int32, Float32, Int32]:
    import numpy as np

    exact = (np.arange(axis.size) + 0.5) * float(np.float32(axis.scale)) + axis.bias
    position = np.maximum(exact, 0).astype(np.float32)
    cell = np.minimum(position.astype(np.int32), np.int32(axis.cells - 1))
    part = np.minimum(position - cell.astype(np.float32), np.float32(1))
    return cell, part, np.searchsorted(cell, np.arange(axis.cells + 1, dtype=np.int32)).astype(np.int32)


def axes(
    transform: ResizeTransform, grid_height: int, grid_width: int, *, align_corners: bool = False
) -> tuple[Axis, Axis]:
    """Return the axes of rows and columns for a grid of cells over the input that `transform` describes."""
    p = transform
    rows = Axis.of(p.height, p.inner_height, p.top, p.input_height, grid_height, align_corners)
    return rows, Axis.of(p.width, p.inner_width, p.left, p.input_width, grid_width, align_corners)


def logits_at(values: Float32, rows: Axis, columns: Axis, y: NDArray[Any], x: NDArray[Any]) -> Float32:
    """Return logits float32 (N, C) of `values` (C, h, w), sampled at the image's pixels `y` and `x`, integers (N,)."""
    import numpy as np

    row, down, _ = rows.positions()
    column, across, _ = columns.positions()
    near_y, near_x = rows.first + row[y], columns.first + column[x]
    far_y = np.minimum(near_y + 1, rows.first + rows.cells - 1)
    far_x = np.minimum(near_x + 1, columns.first + columns.cells - 1)
    above = values[:, near_y, near_x] * (1 - across[x]) + values[:, near_y, far_x] * across[x]
    below = values[:, far_y, near_x] * (1 - across[x]) + values[:, far_y, far_x] * across[x]
    sampled: Float32 = (above * (1 - down[y]) + below * down[y]).T
    return sampled
