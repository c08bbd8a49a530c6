"""Applies a function on bitmaps to the masks of instances, each within its own window of the image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from segserve_builder.values import Instances


def map_masks(
    instances: Instances,
    change: Callable[[NDArray[Any]], NDArray[Any]],
    margin: int = 0,
    classes: Collection[int] | None = None,
) -> Instances:
    """Return the instances with changed masks, without those of which nothing is left.

    `change` gets and returns uint8 0/1, shaped (h, w): the mask's bounding box with `margin` pixels around it, as
    far as the image reaches. Instances that are not of `classes`, where they are given, stay as they are.
    """
    from segserve_builder.kernels.rle import MaskWindow, encode
    from segserve_builder.kernels.rle_reader import decode

    size = (instances.height, instances.width)
    masks, left = [], []
    for index, counts in enumerate(instances.masks):
        if classes is not None and int(instances.classes[index]) not in classes:
            masks.append(counts)
            left.append(index)
            continue
        window = decode(counts, *size, margin)
        bitmap = change(window.bitmap) if window.bitmap.size else window.bitmap
        if bitmap.any():
            masks.append(encode(MaskWindow(bitmap, window.top, window.left), *size))
            left.append(index)
    return replace(instances.take(left), masks=tuple(masks))
