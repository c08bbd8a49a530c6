"""Logits, probabilities, and the mean probability of each class of a label map."""

from __future__ import annotations

from math import inf, log

from segserve_builder.sampling import axes
from segserve_builder.values import Float32, Int32, Int64, LabelMap


def logit(probability: float) -> float:
    """Return log(p / (1 - p)): minus infinity for 0, infinity for 1."""
    if probability in (0, 1):
        return inf if probability else -inf
    return log(probability / (1 - probability))


def softmax(logits: Float32, axis: int = -1) -> Float32:
    """Return the softmax of float32 logits of any shape along an axis, of the same shape."""
    import numpy as np

    parts: Float32 = np.exp(logits - logits.max(axis=axis, keepdims=True, initial=-np.inf))
    shares: Float32 = parts / parts.sum(axis=axis, keepdims=True)
    return shares


def sigmoid(logits: Float32) -> Float32:
    """Return the sigmoid of float32 logits (K, ...), of the same shape."""
    import numpy as np

    shares = np.empty(logits.shape, np.float32)
    # One mask at a time stays in the cache. exp overflows float32 above 88; the probability is 0 then, as torch has it.
    with np.errstate(over="ignore"):
        for values, share in zip(logits, shares, strict=True):
            np.exp(np.negative(values, out=share), out=share)
            share += np.float32(1)
            np.divide(np.float32(1), share, out=share)
    return shares


def class_statistics(value: LabelMap, number: int) -> tuple[Int64, Float32]:
    """Return, for each of `number` classes, its area in pixels and its mean probability over it, 0 without pixels.

    They are int64 (number,) and float32 (number,). The probability is the softmax of the logits, sampled bilinearly at
    the pixel and divided by their temperature; with one channel the sigmoid, and its complement for class 0. It is 1
    for labels without scores.
    """
    return _statistics(value, number, None)


def part_statistics(value: LabelMap, parts: Int32, number: int) -> tuple[Int64, Float32]:
    """Return area and mean probability of each part, as `class_statistics` does for classes.

    `parts` int32 (H, W) has each pixel's part, below `number`; a pixel's probability is its own class's.
    """
    return _statistics(value, number, parts)


def _statistics(value: LabelMap, number: int, parts: Int32 | None) -> tuple[Int64, Float32]:
    import numpy as np

    from segserve_builder.kernels.probability import label_sums

    logits = value.logits.values
    if not logits.size:
        counts = np.bincount((value.labels if parts is None else parts).ravel(), minlength=number)
        return counts, (counts > 0).astype(np.float32)
    if len(logits) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits])
    rows, columns = axes(value.logits.transform, *logits.shape[1:], align_corners=value.logits.align_corners)
    counts, sums = label_sums(logits, rows, columns, value.labels, value.logits.temperature, parts)
    areas, mean = np.zeros(number, np.int64), np.zeros(number, np.float32)
    areas[: len(counts)] = counts
    mean[: len(counts)] = sums / np.maximum(counts, 1)
    return areas, mean


def mean_confidence(value: LabelMap, number: int) -> Float32:
    """Return the mean probabilities of `class_statistics`, float32 (number,)."""
    return class_statistics(value, number)[1]
