"""Logits and probabilities."""

from __future__ import annotations

from math import inf, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segserve_builder.values import Float32


def logit(probability: float) -> float:
    """Return log(p / (1 - p)): minus infinity for 0, infinity for 1."""
    if probability in (0, 1):
        return inf if probability else -inf
    return log(probability / (1 - probability))


def softmax(logits: Float32, axis: int = -1) -> Float32:
    """Return the probabilities of the classes along an axis."""
    import numpy as np

    parts: Float32 = np.exp(logits - logits.max(axis=axis, keepdims=True, initial=-np.inf))
    shares: Float32 = parts / parts.sum(axis=axis, keepdims=True)
    return shares


def sigmoid(logits: Float32) -> Float32:
    """Return the probabilities of logits (K, ...)."""
    import numpy as np

    shares = np.empty(logits.shape, np.float32)
    # One mask at a time stays in the cache. exp overflows float32 above 88; the probability is 0 then, as torch has it.
    with np.errstate(over="ignore"):
        for values, share in zip(logits, shares, strict=True):
            np.exp(np.negative(values, out=share), out=share)
            share += np.float32(1)
            np.divide(np.float32(1), share, out=share)
    return shares
