"""Test-time augmentation: mirrored, rotated and scaled views of an image, and the mean of their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.imaging.probabilities import softmax
from segserve_builder.stages.tta import Tta

FLIPS: Final = {"horizontal": (True, 0), "vertical": (True, 2), "both": (False, 2)}
"""Each as a mirroring of left and right, followed by quarter turns."""
LEAST_PROBABILITY: Final = 2.0**-24
"""Means are clipped this far from 0 and 1, so that their logits are finite."""


@dataclass(frozen=True, slots=True)
class AugmentedView:
    """One view: the image scaled, then optionally mirrored left to right, then rotated counterclockwise."""

    scale: float
    mirrored: bool
    quarter_turns: int

    def turned(self, image: NDArray[Any], axes: tuple[int, int]) -> NDArray[Any]:
        """Return the image mirrored and rotated; `axes` are its rows and columns.

        It is a view of the same dtype.
        """
        return np.rot90(np.flip(image, axes[1]) if self.mirrored else image, self.quarter_turns, axes)

    def turned_back(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Return logits (C, h, w) of the view, mirrored and rotated back.

        They are a view of the same dtype.
        """
        back = np.rot90(logits, -self.quarter_turns, (1, 2))
        return np.flip(back, 2) if self.mirrored else back


def views(options: Tta) -> tuple[AugmentedView, ...]:
    """Return all distinct combinations of the options; the first is the unchanged image."""
    flips = [(False, 0), *(FLIPS[flip] for flip in options.flips)]
    turns = [0, *(degrees // 90 for degrees in options.rotations)]
    scales = [1.0, *options.scales]
    result = [
        AugmentedView(scale, flip[0], (flip[1] + turn) % 4) for scale in scales for flip in flips for turn in turns
    ]
    return tuple(dict.fromkeys(result))


def averaged(
    image: NDArray[Any],
    axes: tuple[int, int],
    call: Callable[[NDArray[Any]], NDArray[np.float32]],
    options: Tta,
    max_batch_size: int,
) -> NDArray[np.float32]:
    """Return the mean logits (C, h, w) of the image's views, at the resolution of the image's own logits.

    `image` has no batch, `axes` are its rows and columns; `call` returns the logits of a batch of at most
    `max_batch_size` views of one shape. They are float32.
    """
    total: NDArray[np.float32] | None = None
    for batch, pixels in _batches(image, axes, options, max_batch_size):
        for view, logits in zip(batch, call(pixels), strict=True):
            there = view.turned_back(np.asarray(logits, np.float32))
            total = _added(total, there, options.merge)
    if total is None:
        raise ValueError("an image has at least one view")
    return _logits(total / np.float32(len(views(options))), options.merge)


def resized(planes: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Return planes (N, h, w) at another size, sampled bilinearly without antialiasing.

    That is torch's `interpolate` with mode "bilinear" and `align_corners=False`. The result is float32.
    """
    import cv2

    if planes.shape[1:] == (height, width):
        return np.asarray(planes, np.float32)
    result = np.empty((len(planes), height, width), np.float32)
    for plane, out in zip(planes, result, strict=True):
        cv2.resize(np.ascontiguousarray(plane, np.float32), (width, height), out, interpolation=cv2.INTER_LINEAR)
    return result


def _batches(
    image: NDArray[Any], axes: tuple[int, int], options: Tta, most: int
) -> Iterator[tuple[list[AugmentedView], NDArray[Any]]]:
    """Yield views of one shape with their pixels; the first is the image as it is."""
    alike: dict[tuple[float, int], list[AugmentedView]] = {}
    for view in views(options):
        alike.setdefault((view.scale, view.quarter_turns % 2), []).append(view)
    for (scale, _), group in alike.items():
        scaled = _scaled(image, axes, scale, options.multiple_of)
        for first in range(0, len(group), most):
            batch = group[first : first + most]
            yield batch, np.stack([view.turned(scaled, axes) for view in batch])


def _scaled(image: NDArray[Any], axes: tuple[int, int], scale: float, multiple: int) -> NDArray[Any]:
    """Return the image at a multiple of its size, rounded to multiples of `multiple`, of the same dtype."""
    if scale == 1:
        return image
    height, width = (max(1, round(image.shape[axis] * scale / multiple)) * multiple for axis in axes)
    planes = resized(np.moveaxis(image, axes, (-2, -1)), height, width)
    if np.issubdtype(image.dtype, np.integer):
        planes = np.rint(planes)
    return np.ascontiguousarray(np.moveaxis(planes, (-2, -1), axes)).astype(image.dtype, copy=False)


def _added(total: NDArray[np.float32] | None, logits: NDArray[np.float32], merge: str) -> NDArray[np.float32]:
    """Add what a view says to the total, which the first view begins."""
    if total is None:
        return _merged_form(np.array(logits, order="C"), merge)
    total += _merged_form(resized(logits, *total.shape[1:]), merge)
    return total


def _merged_form(logits: NDArray[np.float32], merge: str) -> NDArray[np.float32]:
    """Return what is averaged: the logits, or their probabilities."""
    if merge == "logits":
        return logits
    if merge == "sigmoid" or len(logits) == 1:
        # Of the negative absolute value, so that nothing overflows.
        small = np.exp(-np.abs(logits))
        probability: NDArray[np.float32] = np.where(logits >= 0, np.float32(1), small) / (1 + small)
        return probability
    return softmax(logits, axis=0)


def _logits(mean: NDArray[np.float32], merge: str) -> NDArray[np.float32]:
    """Return the logits of the mean."""
    if merge == "logits":
        return mean
    kept = np.clip(mean, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    logits: NDArray[np.float32] = np.log(kept)
    return logits - np.log1p(-kept) if merge == "sigmoid" or len(mean) == 1 else logits
