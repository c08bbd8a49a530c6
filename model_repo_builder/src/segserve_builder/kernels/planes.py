"""Pixels to a network's input in one pass: the value that each pixel's stands for, and the order of the axes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

F: Final = np.float32


@njit(
    [
        types.void(source(pixel, 3), source(types.float64, 1), source(types.float64, 1), target(types.float32, 3))
        for pixel in (types.uint8, types.float32)
    ],
    **{**OPTIONS, "fastmath": {"contract"}},
)
def _affine(pixels: Any, factor: Any, offset: Any, out: Any) -> None:
    height, width, channels = pixels.shape
    for y in range(height):
        row, a = pixels[y].reshape(-1), out[0, y]
        if channels == 1:
            for x in range(width):
                a[x] = F(row[x] * factor[0] + offset[0])
        else:  # all three at once: loads at a constant distance become SIMD shuffles
            b, c = out[1, y], out[2, y]
            for x in range(width):
                a[x] = F(row[3 * x] * factor[0] + offset[0])
                b[x] = F(row[3 * x + 1] * factor[1] + offset[1])
                c[x] = F(row[3 * x + 2] * factor[2] + offset[2])


def _lookup(pixels: Any, table: Any, out: Any, plane: Any, row_step: Any, step: Any) -> Any:
    height, width, channels = pixels.shape
    for y in range(height):
        row, start = pixels[y].reshape(-1), y * row_step
        a, first = table[0], out[start:]
        if channels == 1:
            for x in range(width):
                first[x * step] = a[row[x]]
        else:
            b, c, second, third = table[1], table[2], out[start + plane :], out[start + 2 * plane :]
            for x in range(width):
                first[x * step] = a[row[3 * x]]
                second[x * step] = b[row[3 * x + 1]]
                third[x * step] = c[row[3 * x + 2]]


_lookup_compiled = njit(
    [
        types.void(source(pixel, 3), source(value, 2), target(value, 1), types.int64, types.int64, types.int64)
        for pixel in (types.uint8, types.uint16)
        for value in (types.float32, types.uint16)
    ],
    **OPTIONS,
)(_lookup)


def affine_planes(
    pixels: NDArray[Any], factor: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return pixel * factor + offset of each channel as float32 (C, H, W), of uint8 or float32 (H, W, 1 or 3).

    The sum is made in float64, on some processors without rounding the product first. Raises `ValueError` if shapes do
    not match.
    """
    pixels = packed(pixels, np.float32 if pixels.dtype == np.float32 else np.uint8, 3)
    height, width, channels = pixels.shape
    if channels not in (1, 3) or factor.shape != (channels,) or offset.shape != (channels,):
        raise ValueError(
            f"factor and offset have shapes {factor.shape}, {offset.shape} for {channels} channels, 1 or 3"
        )
    out = np.empty((channels, height, width), np.float32)
    _affine(pixels, packed(factor, np.float64, 1), packed(offset, np.float64, 1), out)
    return out


def looked_up(pixels: NDArray[Any], table: NDArray[Any], channels_first: bool) -> NDArray[Any]:
    """Return table[k, pixel] for channel k, of the table's type, as (C, H, W) or (H, W, C).

    `pixels` is uint8 or uint16 (H, W, 1 or 3); `table` float32 or float16 (C, 256 or 65536). Raises `ValueError` if
    shapes do not match.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or table.dtype not in (np.float32, np.float16):
        raise ValueError(f"pixels are {pixels.dtype}, the table {table.dtype}; uint8 or uint16, float32 or float16")
    pixels, table = packed(pixels, pixels.dtype, 3), packed(table, table.dtype, 2)
    height, width, channels = pixels.shape
    if channels not in (1, 3) or table.shape != (channels, 256**pixels.dtype.itemsize):
        raise ValueError(f"the table has shape {table.shape} for {pixels.dtype} and {channels} channels, 1 or 3")
    out = np.empty(pixels.size, table.dtype)
    steps = (height * width, width, 1) if channels_first else (1, width * channels, channels)
    if table.dtype == np.float16:  # its bits are moved: numba has no float16 on a CPU
        _lookup_compiled(pixels, table.view(np.uint16), out.view(np.uint16), *steps)
    else:
        _lookup_compiled(pixels, table, out, *steps)
    return out.reshape((channels, height, width) if channels_first else pixels.shape)
