"""The embedding of an image: a network's output that tells what the image is as a whole, beside usual images.

The output is averaged over its positions, and its length becomes 1 (Mueller and Hein, Mahalanobis++, 2025). It is
projected onto fixed random directions of signs, which nearly keep distances (Achlioptas, Database-friendly Random
Projections, 2003): a network's own channels are too many for a covariance of some ten images, and to be counted each.
Then usual images' mean is subtracted, and their covariance, shrunk towards a multiple of the identity (Chen et al.,
Shrinkage Algorithms for MMSE Covariance Estimation, 2010), becomes the identity: these are the coordinates, and their
length is the Mahalanobis distance (Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and
Adversarial Attacks, 2018, with one class). Of few images more is shrunk, and directions of little variance keep less
than 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from segserve_builder.errors import NonFiniteError, SignatureError
from segserve_builder.families.base import (
    NetworkIO,
    TensorSpec,
    check_batch,
    described,
)
from segserve_builder.spec.model_spec import DIRECTIONS, Embedding

if TYPE_CHECKING:
    from numpy.typing import NDArray

Layout = Literal["NCHW", "NHWC"]

MIN_USUAL: Final = 4 * DIRECTIONS
"""Usual images that a covariance is made of, at least."""
_LEAST_SHRINKAGE: Final = 0.001
"""So that projections which depend on each other have an inverse covariance."""


def embedding_tensor(found: TensorSpec, io: NetworkIO) -> TensorSpec:
    """Return the output that is declared as the embedding, batch first; raises `SignatureError` if it cannot be one."""
    tensor = found if io.batched else replace(found, shape=(1, *found.shape))
    if tensor.dtype != "FP32" or len(tensor.shape) not in (2, 3, 4):
        allowed = "[batch, channels], [batch, positions, channels], or a map with"
        if not io.batched:
            allowed = "[channels], [positions, channels], or a map, without a batch as the family's other outputs, of"
        raise SignatureError(f"embedding {described(found)}: it must be FP32 {allowed} the input's layout, {io.layout}")
    check_batch("embedding", tensor)
    channels = tensor.shape[_channel_axis(len(tensor.shape), io.layout)]
    if channels is not None and channels < DIRECTIONS:
        batch = "" if io.batched else ", and no batch, as the family's other outputs have none"
        raise SignatureError(f"embedding {described(found)}: it must have at least {DIRECTIONS} channels{batch}")
    return tensor


def coordinates(values: NDArray[Any], layout: Layout, embedding: Embedding) -> NDArray[Any]:
    """Return the coordinates, float64 [`DIRECTIONS`], of one image's embedding, which has a batch of one.

    Raises `NonFiniteError`, and `SignatureError` if it has too few channels.
    """
    import numpy as np

    channels_last = np.moveaxis(values[0], _channel_axis(values.ndim, layout) - 1, -1)
    vector = channels_last.reshape(-1, channels_last.shape[-1]).mean(0, dtype=np.float64)
    if len(vector) < DIRECTIONS:
        raise SignatureError(f"the embedding has the shape {list(values.shape)}: it must have {DIRECTIONS} channels")
    if not np.isfinite(vector).all():
        raise NonFiniteError(
            f"the network's output {embedding.output!r}, the embedding, has values that are NaN or infinite"
        )
    return whitened(vector / (np.linalg.norm(vector) or 1.0) @ _signs(len(vector)), embedding)


def whitened(projections: NDArray[Any], embedding: Embedding) -> NDArray[Any]:
    """Return the coordinates of projections, both [..., `DIRECTIONS`]."""
    import numpy as np

    whitening = np.zeros((DIRECTIONS, DIRECTIONS))
    whitening[np.tril_indices(DIRECTIONS)] = embedding.whitening
    coordinates: NDArray[Any] = (projections - embedding.mean) @ whitening.T
    return coordinates


def unscaled(output: str) -> Embedding:
    """Return the embedding whose coordinates are the mere projections, of which `of_usual_images` makes one."""
    import numpy as np

    identity = np.eye(DIRECTIONS)[np.tril_indices(DIRECTIONS)]
    return Embedding(output=output, mean=(0.0,) * DIRECTIONS, whitening=tuple(identity.tolist()))


def of_usual_images(output: str, projections: NDArray[Any]) -> Embedding:
    """Return the embedding whose coordinates are those beside usual images, of their projections [N, `DIRECTIONS`].

    Raises `ValueError` if they are fewer than `MIN_USUAL`, or all the same.
    """
    import numpy as np

    number, size = projections.shape
    if number < MIN_USUAL:
        raise ValueError(f"an embedding needs at least {MIN_USUAL} usual images, got {number}")
    covariance = np.cov(projections, rowvar=False, bias=True)
    squares, square = float((covariance**2).sum()), float(np.trace(covariance)) ** 2
    if not square:
        raise ValueError(f"the embeddings of all {number} usual images are the same")
    spread = (number + 1 - 2 / size) * (squares - square / size)
    shrinkage = 1.0 if spread <= 0 else min(1.0, ((1 - 2 / size) * squares + square) / spread)
    shrinkage = max(shrinkage, _LEAST_SHRINKAGE)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / size * np.eye(size)
    whitening = np.linalg.inv(np.linalg.cholesky(shrunk))[np.tril_indices(size)]
    mean = projections.mean(0)
    return Embedding(output=output, mean=_rounded(mean), whitening=_rounded(whitening))


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _channel_axis(rank: int, layout: Layout) -> int:
    return 1 if rank == 4 and layout == "NCHW" else rank - 1


@lru_cache(maxsize=8)
def _signs(channels: int) -> NDArray[Any]:
    """Return the directions [channels, `DIRECTIONS`], 1 or -1, the same ones in each release of numpy."""
    import numpy as np

    drawn = hashlib.shake_256(b"segserve embedding").digest(-(-channels * DIRECTIONS // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=channels * DIRECTIONS)
    return bits.reshape(channels, DIRECTIONS) * 2.0 - 1.0
