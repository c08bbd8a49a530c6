"""Softmax over labels that lie in lanes of 8: flat float32 rows e[(g * width + x) * 8 + k] of label 8 * g + k."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from segserve_builder.kernels.compiled import OPTIONS
from segserve_builder.kernels.crf_simd import LANES, add8, max8, scale8, sum8

F: Final = np.float32
FUSED: Final = {**OPTIONS, "fastmath": {"contract"}}
EMPTY: Final = F(-1e9)
"""The score of a lane without a label."""
LEAST: Final = F(-60)
"""Exponents below it count as it: a probability of 1e-26, whose products are not yet denormal numbers."""
MOST: Final = F(87)
NEAREST: Final = F(12582912)
"""Added to a float32 and taken away again, 1.5 * 2**23 leaves the nearest whole number."""


@njit(**FUSED)
def exp_row(e: Any) -> Any:
    """Replace a row by its exponentials, within exp(LEAST) and exp(MOST), to about 2e-7 of themselves."""
    bits = e.view(np.int32)
    for t in range(e.shape[0]):
        z = min(max(e[t], LEAST), MOST) * F(1.44269504)
        n = (z + NEAREST) - NEAREST
        f = z - n
        p = F(1.5353362e-4)  # 2**f for f within -1/2 and 1/2, from Cephes' exp2f
        for coefficient in (F(1.3398874e-3), F(9.6184374e-3), F(5.5503325e-2), F(2.4022648e-1), F(6.9314720e-1), F(1)):
            p = p * f + coefficient
        e[t] = p
        bits[t] += np.int32(n) << np.int32(23)  # * 2**n through the exponent's field


@njit(**FUSED)
def _shift_row(e: Any, width: Any) -> Any:
    """Make every pixel's best score 0."""
    step = LANES * width
    for i in range(0, step, LANES):
        best = max8(e, i)
        for at in range(i + step, e.shape[0], step):
            best = max(best, max8(e, at))
        for at in range(i, e.shape[0], step):
            add8(e, at, -best)


@njit(**FUSED)
def softmax_row(e: Any, width: Any, shift: Any) -> Any:
    """Replace scores by their softmax. Without `shift`, a pixel's best must be within 0 and MOST."""
    if shift:
        _shift_row(e, width)
    exp_row(e)
    step = LANES * width
    for i in range(0, step, LANES):
        total = F(0)
        for at in range(i, e.shape[0], step):
            total += sum8(e, at)
        for at in range(i, e.shape[0], step):
            scale8(e, at, F(1) / total)


@njit(**FUSED)
def log_softmax_row(e: Any, width: Any, scratch: Any) -> Any:
    """Replace scores by the logarithms of their softmax; `scratch` is of the same length."""
    _shift_row(e, width)
    for t in range(e.shape[0]):
        scratch[t] = e[t]
    exp_row(scratch)
    step = LANES * width
    for i in range(0, step, LANES):
        total = F(0)
        for at in range(i, e.shape[0], step):
            total += sum8(scratch, at)
        less = -F(np.log(total))
        for at in range(i, e.shape[0], step):
            add8(e, at, less)
