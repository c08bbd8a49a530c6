"""Compilation options of kernels, and conversion of arrays to their types.

Kernels have explicit signatures, so that an unusual array can never compile a second version in the middle of a
request; inputs are declared read-only, which writable arrays fit as well.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import DTypeLike, NDArray

from segserve_builder.kernels import cache

cache.use()

OPTIONS: Final = {"cache": True, "error_model": "numpy", "nogil": True}


def source(element: Any, dimensions: int) -> Any:
    """Return the numba type of a C-contiguous input array, read-only or not."""
    return types.Array(element, dimensions, "C", readonly=True)


def target(element: Any, dimensions: int) -> Any:
    """Return the numba type of a C-contiguous array that a kernel writes."""
    return types.Array(element, dimensions, "C")


def packed(array: NDArray[Any], dtype: DTypeLike, dimensions: int) -> NDArray[Any]:
    """Return `array` as aligned, C-contiguous `dtype`: the same array if it is that already.

    Raises `ValueError` if it has another number of dimensions.
    """
    if array.ndim != dimensions:
        raise ValueError(f"the array has shape {array.shape!r}; {dimensions} dimensions are expected")
    return np.require(array, dtype, ("C", "A"))
