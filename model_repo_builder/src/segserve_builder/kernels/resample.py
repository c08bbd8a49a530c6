"""Antialiased resizing, as by torch's `interpolate(antialias=True)` and Pillow's `resize`.

A pixel of the result is a weighted mean of the pixels that its own, enlarged by the filter, covers. Row by row, the
weighted sum of source rows is made first, which is plain SIMD, then the sum of its columns, a pixel's channels at once.
Bytes that are rounded after each pass take two calls, along rows first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

Filter = Literal["bilinear", "cubic"]
Rounding = Literal["once", "eachPass"]
F: Final = np.float32
I64: Final = ir.IntType(64)
PAIR: Final = 2
"""Columns that are weighed at a time."""
ROWS: Final = 4
"""Source rows that are weighed in one pass over them."""
SLACK: Final = 4
"""Elements behind a line that are read or written with its last pixel, and not used."""
HALF_EVEN: Final = F(0)
HALF_UP: Final = F(0.5)
MOST_BITS: Final = 22
"""Fractional bits of torch's weights of bytes, which are 16-bit integers, at most."""
_CUBIC: Final = -0.5


@intrinsic
def _weigh_pixel(
    typing_context: Any, line: Any, i: Any, weights: Any, j: Any, taps: Any, half: Any, out: Any, k: Any
) -> Any:
    """Write out[k:k + 4] = the sum over t < taps of weights[j + t] * line[i + 3 * t:][:4], rounded and clamped.

    `line` and `weights` are flat float32; `out` is flat uint8 or uint16; `half` is HALF_EVEN or HALF_UP.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, whole = ir.FloatType(), ir.IntType(32)
        four, fours = ir.VectorType(number, 4), ir.VectorType(whole, 4)

        def data(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, arguments[position]).data

        def splat(value: Any, vector: Any) -> Any:
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, whole(0))
            return builder.shuffle_vector(single, single, ir.Constant(fours, None))

        element = context.get_data_type(signature.args[6].dtype)
        pixels, weight = data(0), data(2)
        total = cgutils.alloca_once_value(builder, ir.Constant(four, None))
        with cgutils.for_range_slice(builder, I64(0), arguments[4], I64(PAIR), intp=I64) as (tap, _):
            for t in range(PAIR):
                at = builder.add(arguments[1], builder.mul(builder.add(tap, I64(t)), I64(3)))
                pixel = builder.load(builder.bitcast(builder.gep(pixels, [at]), four.as_pointer()), align=4)
                own = builder.gep(weight, [builder.add(builder.add(arguments[3], tap), I64(t))])
                product = builder.fmul(pixel, splat(builder.load(own), four), flags=("contract",))
                builder.store(builder.fadd(product, builder.load(total), flags=("contract",)), total)
        even, down = (
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(four, [four]), f"llvm.{name}.v4f32")
            for name in ("rint", "floor")
        )
        sums, half = builder.load(total), arguments[5]
        nearest = builder.select(
            builder.fcmp_ordered("==", half, number(0)),
            builder.call(even, [sums]),
            builder.call(down, [builder.fadd(sums, splat(half, four))]),
        )
        low, high = ir.Constant(four, None), splat(number(float(2**element.width - 1)), four)
        nearest = builder.select(builder.fcmp_ordered(">", nearest, low), nearest, low)
        nearest = builder.select(builder.fcmp_ordered("<", nearest, high), nearest, high)
        vector = ir.VectorType(element, 4)
        narrow = builder.trunc(builder.fptosi(nearest, fours), vector)
        builder.store(narrow, builder.bitcast(builder.gep(data(6), [arguments[7]]), vector.as_pointer()), align=1)
        return context.get_dummy_value()

    index = types.intp
    return types.void(line, index, weights, index, index, half, out, index), generate


@njit(**{**OPTIONS, "fastmath": {"contract"}})
def _weigh_rows(pixels: Any, first: Any, weight: Any, line: Any) -> Any:
    """Write the weighted sum of the rows of `pixels` from `first` on, one for each weight, by fours."""
    last, n = pixels.shape[0] - 1, pixels.shape[1]
    for k in range(0, weight.shape[0], ROWS):  # rows past the last one have no weight
        a, b = pixels[min(first + k, last)], pixels[min(first + k + 1, last)]
        c, d = pixels[min(first + k + 2, last)], pixels[min(first + k + 3, last)]
        wa, wb, wc, wd = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        if k == 0:
            for j in range(n):
                line[j] = F(a[j]) * wa + F(b[j]) * wb + F(c[j]) * wc + F(d[j]) * wd
        else:
            for j in range(n):
                line[j] += F(a[j]) * wa + F(b[j]) * wb + F(c[j]) * wc + F(d[j]) * wd


@njit(**{**OPTIONS, "fastmath": {"contract"}})
def _weigh_greys(line: Any, first: Any, weights: Any, half: Any, largest: Any, out: Any) -> Any:
    """Write the weighted sums of a line of single channels, rounded and clamped."""
    for x in range(out.shape[0]):
        total, start = F(0), first[x]
        for k in range(weights.shape[1]):
            total += weights[x, k] * line[start + k]
        total = min(max(total, F(0)), largest)
        out[x] = np.int32(np.rint(total) if half == 0 else np.floor(total + half))


def _resample(
    pixels: Any,
    channels: Any,
    first_row: Any,
    row_weights: Any,
    first_column: Any,
    column_weights: Any,
    half: Any,
    out: Any,
) -> Any:
    height, width = first_row.shape[0], first_column.shape[0]
    taps = column_weights.shape[1]
    line = np.zeros(pixels.shape[1] + channels * taps + SLACK, np.float32)
    flat = column_weights.reshape(-1)
    largest = F(256 ** np.int64(out.itemsize) - 1)
    for y in range(height):
        _weigh_rows(pixels, first_row[y], row_weights[y], line)
        if channels == 3:
            for x in range(width):
                _weigh_pixel(line, 3 * first_column[x], flat, x * taps, taps, half, out, 3 * (y * width + x))
        else:
            _weigh_greys(line, first_column, column_weights, half, largest, out[y * width : (y + 1) * width])


_AXIS: Final = (source(types.int64, 1), source(types.float32, 2))
_resample_compiled = njit(
    [
        types.void(source(element, 2), types.int64, *_AXIS, *_AXIS, types.float32, target(element, 1))
        for element in (types.uint8, types.uint16)
    ],
    **OPTIONS,
)(_resample)


@lru_cache(maxsize=64)
def _axis(
    old: int, new: int, method: Filter, step: int, rounding: Rounding = "once"
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each of `new` pixels the first of `old` ones that it is made of, and their weights (new, taps).

    The number of taps is a multiple of `step`; surplus taps weigh nothing. With `eachPass` weights are torch's
    for bytes: integers of 16 bits, with as many fractional bits as the largest one leaves.
    """
    scale = old / new
    wide = max(scale, 1.0)
    support = wide * (2 if method == "cubic" else 1)
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int64), old)
    taps = np.arange(-(-(stop - first).max() // step) * step)
    distance = np.abs((taps + first[:, None] - centre[:, None] + 0.5) / wide)
    weights = _cubic(distance) if method == "cubic" else np.maximum(1 - distance, 0)
    weights[taps >= (stop - first)[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    if rounding == "eachPass":
        fits = [bits for bits in range(MOST_BITS + 1) if int(0.5 + weights.max() * 2**bits) < 2**15]
        weights = np.trunc(weights * 2.0 ** fits[-1] + np.copysign(0.5, weights)) / 2.0 ** fits[-1]
    return first, weights.astype(np.float32)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resample(
    pixels: NDArray[Any], height: int, width: int, method: Filter, rounding: Rounding = "once"
) -> NDArray[Any]:
    """Return `pixels`, uint8 or uint16 shaped (H, W, 1 or 3), in another size of at least one pixel, antialiased.

    Sums are of float32, rounded half to even and clamped: torch's `interpolate` of the pixels as float32 with
    `antialias=True` and `align_corners=False` gives the same numbers before they are rounded, except for float32's own
    errors. Where the image grows, `bilinear` is torch's without antialias; `cubic` has the coefficient -0.5. With
    `eachPass` they are rounded half up and clamped along rows first and then along columns, as torch does with bytes.
    Raises `ValueError` if the size or shape is not allowed.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels are {pixels.dtype}; uint8 and uint16 are allowed")
    pixels = packed(pixels, pixels.dtype, 3)
    old_height, _, channels = pixels.shape
    if channels not in (1, 3) or not pixels.size or min(height, width) < 1:
        raise ValueError(f"pixels of shape {pixels.shape} to {height} x {width}; 1 or 3 channels are allowed, no 0")
    passes = (
        ((height, width, HALF_EVEN),)
        if rounding == "once"
        else ((old_height, width, HALF_UP), (height, width, HALF_UP))
    )
    for rows, columns, half in passes:
        axes = (
            *_axis(len(pixels), rows, method, ROWS, rounding),
            *_axis(pixels.shape[1], columns, method, PAIR, rounding),
        )
        out = np.empty(rows * columns * channels + SLACK, pixels.dtype)
        _resample_compiled(pixels.reshape(len(pixels), -1), channels, *axes, half, out)
        pixels = out[:-SLACK].reshape(rows, columns, channels)
    return pixels
