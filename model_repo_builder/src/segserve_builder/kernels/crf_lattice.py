"""The permutohedral lattice, which filters with a Gaussian in the space of positions and colours.

Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice (2010). A pixel's place is
computed for a whole row at a time, and a vertex is one 64-bit key: its coordinates beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import source, target
from segserve_builder.kernels.crf_softmax import FUSED, NEAREST

F: Final = np.float32
KEY_BITS: Final = 62
LEAST_TABLE: Final = 1 << 14


class LatticeTooLargeError(ValueError):
    """An image and deviations whose lattice has more vertices, or a larger extent, than is allowed."""


@njit(**FUSED)
def _slot(table: Any, keys: Any, key: Any) -> Any:
    """Return where the table holds the vertex of this key, counted from 1, or the free place for it."""
    mask = table.shape[0] - 1
    i = (key * -7046029254386353131 >> 30) & mask
    while table[i] != 0 and keys[table[i] - 1] != key:
        i = (i + 1) & mask
    return i


@njit(**FUSED)
def _table(keys: Any, n: Any, size: Any) -> Any:
    """Return a table with the first n keys."""
    table = np.zeros(size, np.int32)
    for m in range(n):
        table[_slot(table, keys, keys[m])] = m + 1
    return table


@njit(**FUSED)
def _elevate_row(pixels: Any, y: Any, scales: Any, feature: Any, coordinates: Any) -> Any:
    """Write the d + 1 coordinates of a row's points on the lattice's hyperplane."""
    d = scales.shape[0]
    total = coordinates[0]
    for x in range(feature.shape[0]):
        total[x] = F(0)
    for i in range(d, 0, -1):
        scale, c = scales[i - 1], coordinates[i]
        for x in range(feature.shape[0]):
            if i == 1:
                feature[x] = F(x) * scale
            elif i == 2:
                feature[x] = F(y) * scale
            else:
                feature[x] = F(pixels[x, i - 3]) * scale
        for x in range(feature.shape[0]):
            c[x] = total[x] - F(i) * feature[x]
            total[x] += feature[x]


@njit(**FUSED)
def _round_row(coordinates: Any, remainder: Any, rank: Any, excess: Any) -> Any:
    """Find each point's nearest lattice point of remainder 0, and the rank of its differences from it."""
    size = coordinates.shape[0]
    inverse = F(1) / F(size)
    for x in range(excess.shape[0]):
        excess[x] = 0
    for i in range(size):
        c, r, k = coordinates[i], remainder[i], rank[i]
        for x in range(c.shape[0]):
            nearest = np.int32((c[x] * inverse + NEAREST) - NEAREST)
            r[x] = nearest * np.int32(size)
            excess[x] += nearest
            k[x] = 0
            c[x] = c[x] - F(nearest * np.int32(size))
    for i in range(size - 1):
        for j in range(i + 1, size):
            a, b, ra, rb = coordinates[i], coordinates[j], rank[i], rank[j]
            for x in range(a.shape[0]):
                less = np.int32(a[x] < b[x])
                ra[x] += less
                rb[x] += np.int32(1) - less
    for i in range(size):
        c, r, k = coordinates[i], remainder[i], rank[i]
        for x in range(c.shape[0]):
            q = k[x] + excess[x]
            turn = np.int32(size) * (np.int32(q < 0) - np.int32(q >= size))
            k[x] = q + turn
            r[x] += turn
            c[x] -= F(turn)


@njit(**FUSED)
def _pack_row(
    coordinates: Any, remainder: Any, rank: Any, shifts: Any, bias: Any, by_rank: Any, bits: Any, weights: Any,
    keys: Any,
) -> Any:  # fmt: skip
    """Write the weights (W, d + 1) and the keys (d + 1, W) of a row's vertices, by their remainder."""
    size, width = coordinates.shape
    inverse = F(1) / F(size)
    ones: Any = 0
    for i in range(size - 1):
        ones += 1 << shifts[i]
    base = keys[0]
    for x in range(width):
        base[x] = bias
    for i in range(size):
        c, k = coordinates[i], rank[i]
        bit: Any = 1 << shifts[i] if i < size - 1 else 0
        for x in range(width):
            by_rank[k[x], x] = c[x] * inverse
            bits[k[x], x] = bit
    for i in range(size - 1):
        r = remainder[i]
        for x in range(width):
            base[x] += np.int64(r[x]) << shifts[i]
    for r in range(1, size):
        before, key, bit_row = keys[r - 1], keys[r], bits[size - r]
        for x in range(width):
            key[x] = before[x] + ones - size * bit_row[x]
    for r in range(size):
        high, low = by_rank[size - 1 - r], by_rank[(size - r) % size]
        one = F(1) if r == 0 else F(0)
        for x in range(width):
            weights[x, r] = one + high[x] - low[x]


@njit(**FUSED)
def _look_up_row(row_keys: Any, weights: Any, table: Any, keys: Any, n: Any, first: Any, mass: Any, ids: Any) -> Any:
    """Write the vertices (W, d + 1) of a row, and add its weights to their mass; return the number of vertices.

    Neighbouring pixels mostly share the vertex of a remainder, so that few are looked up.
    """
    for r in range(row_keys.shape[0]):
        last: Any = -1
        vertex: Any = 0
        run = F(0)
        for x in range(row_keys.shape[1]):
            key = row_keys[r, x]
            if key != last:
                mass[vertex] += run
                run = F(0)
                last = key
                i = _slot(table, keys, key)
                if table[i] == 0:
                    keys[n] = key
                    n += 1
                    table[i] = n
                vertex = np.int64(table[i])
            run += weights[x, r]
            ids[x, r] = first + vertex - 1
        mass[vertex] += run
    return n


@njit(**FUSED)
def _neighbours(table: Any, keys: Any, n: Any, shifts: Any, first: Any, size: Any) -> Any:
    """Return (d + 1, M, 2): the vertices before and after each along every direction, 0 if there is none."""
    ones: Any = 0
    for i in range(size - 1):
        ones += 1 << shifts[i]
    out = np.zeros((size, n, 2), np.int32)
    for j in range(size):
        bit: Any = 1 << shifts[j] if j < size - 1 else 0
        for m in range(n):
            vertex = np.int64(table[_slot(table, keys, keys[m] + ones - size * bit)])
            if vertex:
                out[j, m, 1] = first + vertex - 1
                out[j, vertex - 1, 0] = first + m
    return out


@njit(**FUSED)
def _fold_norm(ids: Any, weights: Any, neighbours: Any, first: Any, a: Any, scale: Any) -> Any:
    """Multiply the weights by the root of `scale`, and symmetrically by what makes ones stay ones; `a` is the mass."""
    size, vertices = neighbours.shape[0], neighbours.shape[1]
    b = np.zeros_like(a)
    nothing: Any = 0
    for j in range(size):
        for m in range(vertices):
            i, k = np.int64(neighbours[j, m, 0]), np.int64(neighbours[j, m, 1])
            left = a[i - first + 1] if i else nothing
            right = a[k - first + 1] if k else nothing
            b[m + 1] = a[m + 1] + F(0.5) * (left + right)
        a, b = b, a
    gain = F(1 / (1 + 2.0 ** (1 - size)))
    root = np.sqrt(scale * gain)
    for p in range(ids.shape[0]):
        total = F(0)
        for r in range(size):
            total += weights[p, r] * a[ids[p, r] - first + 1]
        norm = root / np.sqrt(total * gain + F(1e-20))
        for r in range(size):
            weights[p, r] *= norm


@njit(
    types.Tuple((target(types.int32, 2), target(types.float32, 2), target(types.int32, 3)))(
        source(types.uint8, 3), source(types.float32, 1), source(types.int64, 1), types.int64, types.int64,
        types.float32, types.int64,
    ),
    **FUSED,
)  # fmt: skip
def _build(image: Any, scales: Any, shifts: Any, bias: Any, first: Any, scale: Any, limit: Any) -> Any:
    height, width = image.shape[:2]
    size = scales.shape[0] + 1
    ids, weights = np.empty((height * width, size), np.int32), np.empty((height * width, size), np.float32)
    coordinates, feature = np.empty((size, width), np.float32), np.empty(width, np.float32)
    remainder, rank = np.empty((size, width), np.int32), np.empty((size, width), np.int32)
    excess, row_keys = np.empty(width, np.int32), np.empty((size, width), np.int64)
    by_rank, bits = np.empty((size, width), np.float32), np.empty((size, width), np.int64)
    keys, mass = np.empty(0, np.int64), np.zeros(1, np.float32)
    table = _table(keys, 0, LEAST_TABLE)
    n: Any = 0
    for y in range(height):
        _elevate_row(image[y], y, scales, feature, coordinates)
        _round_row(coordinates, remainder, rank, excess)
        i, w = ids[y * width : (y + 1) * width], weights[y * width : (y + 1) * width]
        _pack_row(coordinates, remainder, rank, shifts, bias, by_rank, bits, w, row_keys)
        most = n + size * width
        if most > keys.shape[0]:
            more_keys, more_mass = np.empty(2 * most, np.int64), np.zeros(2 * most + 1, np.float32)
            for m in range(n):
                more_keys[m], more_mass[m + 1] = keys[m], mass[m + 1]
            keys, mass = more_keys, more_mass
        places = table.shape[0]
        while 2 * most > places:
            places *= 2
        if places > table.shape[0]:
            table = _table(keys, n, places)
        n = _look_up_row(row_keys, w, table, keys, n, first, mass, i)
        if n > limit:
            return ids, weights, np.empty((size, 0, 2), np.int32)
    neighbours = _neighbours(table, keys, n, shifts, first, size)
    _fold_norm(ids, weights, neighbours, first, mass[: n + 1], scale)
    return ids, weights, neighbours


@dataclass(frozen=True, slots=True)
class Feature:
    """One axis of the space that is filtered in: values from 0 to `most`, in units of `sigma`."""

    most: float
    sigma: float


def _scales(features: Sequence[Feature]) -> NDArray[np.float32]:
    """Return what each feature is multiplied with, so that the lattice's blur has a deviation of 1 of its units."""
    size = len(features) + 1
    stretch = math.sqrt(2 / 3) * size
    steps = [stretch / math.sqrt((i + 1) * (i + 2)) / feature.sigma for i, feature in enumerate(features)]
    return np.array(steps, np.float32)


def _fields(features: Sequence[Feature], scales: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
    """Return where each coordinate but the last starts in a key, and the key of the point 0.

    Raises `LatticeTooLargeError` if the coordinates need more bits than a key has.
    """
    size = len(features) + 1
    reach = [feature.most * float(scale) for feature, scale in zip(features, scales, strict=True)]
    shifts, bias, start = [], 0, 0
    for i in range(size - 1):
        # Rounding moves a coordinate by less than 2 * size, a neighbour is at most size away.
        most = max(sum(reach[i:]), i * reach[i - 1] if i else 0) + 4 * size
        bits = math.ceil(math.log2(most)) + 1
        shifts.append(start)
        bias += 1 << (start + bits - 1)
        start += bits
    if start > KEY_BITS:
        spans = ", ".join(f"{feature.most:g} / {feature.sigma:g}" for feature in features)
        raise LatticeTooLargeError(
            f"the lattice spans {spans} (extent / sigma): {start} bits a vertex, {KEY_BITS} are allowed"
        )
    return np.array(shifts, np.int64), bias


@dataclass(frozen=True, slots=True)
class Lattice:
    """A lattice of d dimensions for an image of N pixels.

    `ids` int32 (N, d + 1) are each pixel's vertices, `weights` float32 their weights with which values are both
    splatted and sliced, `neighbours` int32 (d + 1, M, 2) the vertices that each of the M is blurred with. Vertices
    count from the `first`, 0 is none.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    neighbours: NDArray[np.int32]


def build_lattice(
    image: NDArray[np.uint8], features: Sequence[Feature], first: int, weight: float, limit: int
) -> Lattice:
    """Return the lattice of `features`: x, y and, where there are five, the channels of `image`, uint8 (H, W, 3).

    Filtering multiplies with `weight`, and is normalised symmetrically. `first` is at least 1, the image has a pixel.
    Raises `LatticeTooLargeError` if there are more vertices than `limit`, or a vertex' key cannot hold the extent.
    """
    scales = _scales(features)
    lattice = Lattice(*_build(image, scales, *_fields(features, scales), first, weight, limit))
    if not lattice.neighbours.shape[1]:
        raise LatticeTooLargeError(f"the lattice has more than {limit} vertices")
    return lattice
