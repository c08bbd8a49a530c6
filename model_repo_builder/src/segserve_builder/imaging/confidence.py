"""The area of each class and its mean probability over the pixels that bear its label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_builder.sampling import axes

if TYPE_CHECKING:
    from segserve_builder.values import Float32, Int64, LabelMap


def class_statistics(value: LabelMap, number: int) -> tuple[Int64, Float32]:
    """Return, for each of `number` classes, its area in pixels and its mean probability over them; 0 where none is.

    int64 (number,) and float32 (number,). The probability is the softmax of the logits, sampled bilinearly at the pixel
    and divided by their temperature; with one channel the sigmoid, and its complement for class 0.
    """
    import numpy as np

    from segserve_builder.kernels.probability import label_sums

    logits = value.logits.values
    if len(logits) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits])
    rows, columns = axes(value.logits.placement, *logits.shape[1:], align_corners=value.logits.align_corners)
    found, sums = label_sums(logits, rows, columns, value.labels, value.logits.temperature)
    areas, mean = np.zeros(number, np.int64), np.zeros(number, np.float32)
    areas[: len(found)] = found
    mean[: len(found)] = sums / np.maximum(found, 1)
    return areas, mean


def mean_confidence(value: LabelMap, number: int) -> Float32:
    """Return the second of `class_statistics`."""
    return class_statistics(value, number)[1]
