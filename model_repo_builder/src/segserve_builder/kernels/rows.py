"""The best class of detections that lie row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target


@njit(**{**OPTIONS, "fastmath": {"nnan", "nsz"}})  # without NaN a maximum may be taken in any order, so in vectors
def _highest(row: Any, weight: Any, products: Any) -> Any:
    """Write products = row * weight; return the largest."""
    best = row[0] * weight
    for k in range(row.shape[0]):
        products[k] = row[k] * weight
        best = max(best, products[k])
    return best


@njit(
    types.void(
        source(types.float32, 2),
        types.int64,
        types.int64,
        types.int64,
        target(types.int32, 1),
        target(types.float32, 1),
    ),
    **OPTIONS,
)
def _best(rows: Any, weight: Any, first: Any, last: Any, label: Any, score: Any) -> None:
    products = np.empty(last - first, np.float32)
    for i in range(rows.shape[0]):
        best = _highest(rows[i, first:last], rows[i, weight], products)
        k = 0
        while k < last - first - 1 and products[k] != best:
            k += 1
        label[i], score[i] = k, best


def best_of_rows(
    rows: NDArray[np.float32], weight: int, first: int, last: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return which of rows[:, first:last] is the best in each row, and its product with rows[:, weight], both (N,).

    `rows` is (N, L), 0 <= weight < L, 0 <= first < last <= L; ties of the products go to the first. They are int32 and
    float32. Raises `ValueError` if the columns are not in the rows.
    """
    rows = packed(rows, np.float32, 2)
    if not (0 <= first < last <= rows.shape[1] and 0 <= weight < rows.shape[1]):
        raise ValueError(f"columns {first} to {last} times {weight} are not all within {rows.shape[1]}")
    label, score = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    _best(rows, weight, first, last, label, score)
    return label, score
