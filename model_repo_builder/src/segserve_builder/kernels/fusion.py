"""A label map below a map of segments: what is left of it, and filling in the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target

_LABELS = source(types.uint16, 2)
_IDS = target(types.uint16, 2)


@njit(types.void(_LABELS, source(types.uint16, 2), target(types.int64, 1)), **OPTIONS)
def _free_areas(labels: Any, ids: Any, areas: Any) -> None:
    flat_labels, flat_ids = labels.reshape(-1), ids.reshape(-1)
    for i in range(flat_ids.shape[0]):
        areas[flat_labels[i]] += flat_ids[i] == 0


@njit(types.void(_LABELS, source(types.uint16, 1), _IDS), **OPTIONS)
def _fill_free(labels: Any, names: Any, ids: Any) -> None:
    flat_labels, flat_ids = labels.reshape(-1), ids.reshape(-1)
    for i in range(flat_ids.shape[0]):
        flat_ids[i] = flat_ids[i] if flat_ids[i] else names[flat_labels[i]]


def free_areas(labels: NDArray[Any], ids: NDArray[np.uint16], number: int) -> NDArray[np.int64]:
    """Return how many pixels of each of `number` labels, int64 (number,), have the segment id 0.

    `labels`, uint8 or uint16, and `ids`, uint16, are of one shape (H, W). Raises `ValueError` if they are not, or a
    label is not below `number`.
    """
    _check(labels, ids, number)
    areas = np.zeros(number, np.int64)
    _free_areas(packed(labels, np.uint16, 2), packed(ids, np.uint16, 2), areas)
    return areas


def fill_free(labels: NDArray[Any], names: NDArray[np.uint16], ids: NDArray[np.uint16]) -> None:
    """Give every pixel of `ids` that is 0 the name of its label, in place; `ids` is C-contiguous uint16 (H, W).

    Raises `ValueError` if shapes differ or a label has no name.
    """
    _check(labels, ids, len(names))
    _fill_free(packed(labels, np.uint16, 2), packed(names, np.uint16, 1), ids)


def _check(labels: NDArray[Any], ids: NDArray[np.uint16], number: int) -> None:
    if labels.shape != ids.shape or labels.max(initial=0) >= number:
        raise ValueError(f"labels {labels.shape} up to {labels.max(initial=0)}, ids {ids.shape}, {number} labels")
