"""Sums and areas by label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, types

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

if TYPE_CHECKING:
    from numpy.typing import NDArray


@njit(
    [
        types.void(source(element, 2), source(types.float32, 2), target(types.float64, 1), target(types.int64, 1))
        for element in (types.uint8, types.uint16)
    ],
    **OPTIONS,
)
def _tally(labels: Any, values: Any, sums: Any, areas: Any) -> Any:
    flat_labels, flat_values = labels.reshape(-1), values.reshape(-1)
    for i in range(flat_labels.shape[0]):
        sums[flat_labels[i]] += flat_values[i]
        areas[flat_labels[i]] += 1


def tally(
    labels: NDArray[Any], values: NDArray[np.float32], number: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return, for each of `number` labels, the sum of the values at its pixels and how many they are.

    `labels`, uint8 or uint16, and `values` are of one shape (H, W).
    """
    if labels.shape != values.shape or labels.max(initial=0) >= number:
        raise ValueError(f"labels {labels.shape} up to {labels.max(initial=0)}, values {values.shape}, {number} labels")
    sums, areas = np.zeros(number, np.float64), np.zeros(number, np.int64)
    _tally(packed(labels, labels.dtype, 2), packed(values, np.float32, 2), sums, areas)
    return sums, areas
