"""Mean field of a fully connected CRF with Potts compatibility, in lanes of 8 labels.

Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials (2011). Messages are
filtered on two permutohedral lattices, one of positions and one of positions and colours, whose vertices share
one array; a row of pixels is sliced from the last one, normalised, and splatted into the next while it is in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import packed, target
from segserve_builder.kernels.crf_lattice import Feature, build_lattice
from segserve_builder.kernels.crf_simd import LANES, blur8, slice3, slice6, splat3, splat6
from segserve_builder.kernels.crf_softmax import FUSED, log_softmax_row, softmax_row

F: Final = np.float32
SAFE_WEIGHT: Final = 16.0
"""Messages of weights up to this cannot overflow exp, though a pixel may receive a few times the weight."""


@njit(**FUSED)
def _blur(neighbours: Any, first: Any, a: Any, b: Any) -> Any:
    """Blur the vertices from `first` on along all directions, from a to b and back."""
    for j in range(neighbours.shape[0]):
        for k in range(LANES):
            b[k] = F(0)
        for m in range(neighbours.shape[1]):
            blur8(a, LANES * (first + m), LANES * neighbours[j, m, 0], LANES * neighbours[j, m, 1], b)
        a, b = b, a


_FLAT: Final = target(types.float32, 1)
_IDS: Final = target(types.int32, 1)
_NEIGHBOURS: Final = target(types.int32, 3)


@njit(
    types.void(
        _FLAT, types.int64, types.int64, types.int64, _IDS, _FLAT, _NEIGHBOURS, _IDS, _FLAT, _NEIGHBOURS,
        types.int64, types.boolean,
    ),
    **FUSED,
)  # fmt: skip
def _mean_field(
    scores: Any, groups: Any, height: Any, width: Any, ids6: Any, weights6: Any, colour: Any, ids3: Any, weights3: Any,
    space: Any, iterations: Any, shift: Any,
) -> Any:  # fmt: skip
    row, first = width * LANES, 1 + colour.shape[1]
    size = (first + space.shape[1]) * LANES
    # Sums at the vertices are sent from `old` and `spare`, gathered in `new`, and blurred there with `spare`'s help.
    old, new = np.zeros(groups * size, np.float32), np.zeros(groups * size, np.float32)
    spare = np.zeros(groups * size, np.float32)
    e, scratch = np.empty(groups * row, np.float32), np.empty(groups * row, np.float32)
    for iteration in range(iterations + 1):
        for i in range(new.shape[0]):
            new[i] = F(0)
        for y in range(height):
            p: Any = y * width
            for g in range(groups):
                own, start = e[g * row : (g + 1) * row], (g * height + y) * row
                for t in range(row):
                    own[t] = scores[start + t]
                if iteration:
                    sent6, sent3 = old[g * size : (g + 1) * size], spare[g * size : (g + 1) * size]
                    for x in range(width):
                        slice6(ids6, weights6, 6 * (p + x), sent6, own, LANES * x)
                        slice3(ids3, weights3, 3 * (p + x), sent3, own, LANES * x)
            if iteration == iterations:
                log_softmax_row(e, width, scratch)
            else:
                softmax_row(e, width, shift)
            for g in range(groups):
                own, start = e[g * row : (g + 1) * row], (g * height + y) * row
                if iteration == iterations:
                    for t in range(row):
                        scores[start + t] = own[t]
                else:
                    gathered = new[g * size : (g + 1) * size]
                    for x in range(width):
                        splat6(ids6, weights6, 6 * (p + x), gathered, own, LANES * x)
                        splat3(ids3, weights3, 3 * (p + x), gathered, own, LANES * x)
        for g in range(groups):
            gathered, other = new[g * size : (g + 1) * size], spare[g * size : (g + 1) * size]
            _blur(colour, 1, gathered, other)  # six directions end where they began
            _blur(space, first, gathered, other)  # three end in the other
        old, new = new, old


@dataclass(frozen=True, slots=True)
class Terms:
    """The two pairwise terms: weights, and deviations in pixels (`xy`) and grey levels (`rgb`)."""

    bilateral_xy: float
    bilateral_rgb: float
    bilateral_weight: float
    gaussian_xy: float
    gaussian_weight: float


LATTICE_BYTES: Final = 1 << 30
"""Memory that the values at the vertices and their neighbours may take."""


def refine(scores: NDArray[np.float32], image: NDArray[np.uint8], terms: Terms, iterations: int) -> None:
    """Replace scores by the logarithms of the mean field's probabilities after `iterations`.

    `scores` (G, H, W, 8) holds the log probability of label 8 * g + k, up to a number of each pixel's own so that its
    best is 0, at [g, y, x, k]; lanes without a label hold `EMPTY`. `image` is (H, W, 3) and has a pixel. Equal to
    pydensecrf's with `DIAG_KERNEL` and `NORMALIZE_SYMMETRIC`. Raises `ValueError` for another image, and
    `LatticeTooLargeError` where the lattices would take more than LATTICE_BYTES or are too wide.
    """
    groups, height, width, lanes = scores.shape
    if lanes != LANES or not scores.flags.c_contiguous or scores.dtype != np.float32:
        raise ValueError(f"scores are {scores.dtype} {scores.shape}; contiguous float32 [G, H, W, {LANES}] is expected")
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ValueError(f"the image is {image.dtype} {image.shape}; uint8 {(height, width, 3)} is expected")
    image = packed(image, np.uint8, 3)
    limit = LATTICE_BYTES // (3 * 4 * LANES * groups + 80)
    near = [Feature(width - 1, terms.bilateral_xy), Feature(height - 1, terms.bilateral_xy)]
    colours = [Feature(255, terms.bilateral_rgb)] * 3
    colour = build_lattice(image, [*near, *colours], 1, terms.bilateral_weight, limit)
    vertices = colour.neighbours.shape[1]
    near = [Feature(width - 1, terms.gaussian_xy), Feature(height - 1, terms.gaussian_xy)]
    space = build_lattice(image, near, 1 + vertices, terms.gaussian_weight, limit - vertices)
    _mean_field(
        scores.reshape(-1), groups, height, width,
        colour.ids.reshape(-1), colour.weights.reshape(-1), colour.neighbours,
        space.ids.reshape(-1), space.weights.reshape(-1), space.neighbours,
        iterations, terms.bilateral_weight + terms.gaussian_weight > SAFE_WEIGHT,
    )  # fmt: skip
