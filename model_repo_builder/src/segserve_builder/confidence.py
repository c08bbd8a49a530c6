"""The mean probability of each class over the pixels that bear its label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_builder.sampling import axes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from segserve_builder.sampling import Axis
    from segserve_builder.values import Float32, LabelMap, Logits

BAND_VALUES: Final = 1 << 17
"""Logits are upsampled in bands of about this many, 512 KiB: they stay in the cache, and never exist in full."""


def mean_confidence(value: LabelMap, number: int) -> Float32:
    """Return, for each of `number` classes, its mean probability over the pixels labelled so; 0 where none is.

    float32 (number,). The probability is the softmax of the logits sampled bilinearly at the pixel, with one channel
    the sigmoid.
    """
    import numpy as np

    from segserve_builder.kernels.tally import tally

    sums, areas = np.zeros(number), np.zeros(number, np.int64)
    for top, logits in _bands(value.logits):
        labels = value.labels[top : top + logits.shape[1]]
        band_sums, band_areas = tally(labels, _probability(logits, labels), number)
        sums += band_sums
        areas += band_areas
    mean: Float32 = (sums / np.maximum(areas, 1)).astype(np.float32)
    return mean


def _probability(logits: Float32, labels: NDArray[Any]) -> Float32:
    """Return the probability of each pixel's label, (h, W); `logits` is (C, h, W)."""
    import numpy as np

    if len(logits) == 1:
        against = np.where(labels == 0, logits[0], -logits[0])
        # exp overflows float32 above 88; beyond 80 the probability is 0 to any digit that is given out
        odds: Float32 = np.exp(np.minimum(against, np.float32(80)))
        return np.float32(1) / (np.float32(1) + odds)
    own = np.take_along_axis(logits, labels[None].astype(np.intp), axis=0)
    top = logits.max(axis=0)
    whole: Float32 = np.exp(logits - top).sum(axis=0)
    part: Float32 = np.exp(own[0] - top)
    return part / whole


def _bands(logits: Logits) -> Iterator[tuple[int, Float32]]:
    """Yield bands of the logits upsampled to the image, (C, h, W), each with its first row."""
    rows, columns = axes(logits.placement, *logits.values.shape[1:])
    content = logits.values[:, rows.first : rows.first + rows.cells, columns.first : columns.first + columns.cells]
    height = max(BAND_VALUES // (len(content) * columns.size), 1)
    for top in range(0, rows.size, height):
        band = _sampled(content, rows, slice(top, top + height), axis=1)
        yield top, _sampled(band, columns, slice(None), axis=2)


def _sampled(values: Float32, along: Axis, pixels: slice, axis: int) -> Float32:
    """Return `values` sampled at some pixels of one axis."""
    import numpy as np

    if along.is_crop:
        return values[:, pixels] if axis == 1 else values
    cell, part, _ = along.positions()
    near = values.take(cell[pixels], axis=axis)
    far = values.take(np.minimum(cell[pixels] + 1, along.cells - 1), axis=axis)
    sampled: Float32 = near + (far - near) * (part[pixels, None] if axis == 1 else part[pixels])
    return sampled
