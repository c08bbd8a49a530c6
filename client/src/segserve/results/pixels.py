"""Arrays of pixels: which can be sent, and their conversion to a model's pixel format."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve.results.values import PixelFormat
from segserve_common.errors import BadRequestError
from segserve_common.kserve import DTYPES, Tensor

PIXELS: Final = "PIXELS"
# BT.601 in fixed point, as OpenCV computes it: an array gives the same grey as its file does on the server.
_RED, _GREEN, _BLUE, _BITS = (np.uint32(number) for number in (9798, 19235, 3735, 15))
_ROWS: Final = 64
_ADVICE: Final = {
    "b": "for a mask, send mask.astype(np.uint8) * 255",
    "f": "for values from 0 to 1, send (array * 255).round().astype(np.uint8)",
    "i": "for values from 0 to 255, send array.astype(np.uint8)",
    "u": "for values from 0 to 255, send array.astype(np.uint8)",
}


def pixels_of(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as (H, W, C), uint8 or uint16, with 1 to 4 channels; raises `BadRequestError` otherwise."""
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        advice = _ADVICE.get(array.dtype.kind, "see segserve.results.images.ImageLike for the types that can be sent")
        raise BadRequestError(f"an array of pixels must be uint8 or uint16, got {array.dtype} {array.shape}: {advice}")
    shaped = array[:, :, np.newaxis] if array.ndim == 2 else array
    if shaped.ndim == 3 and shaped.shape[2] in (1, 2, 3, 4) and shaped.size:
        return shaped
    raise BadRequestError(
        f"an array of pixels must be shaped (H, W) or (H, W, C), got {array.shape}{_shape_advice(array.shape)}"
    )


def to_pixel_format(image: Tensor, wanted: PixelFormat | None) -> Tensor:
    """Return PIXELS in a model's format, converted as the server converts files; IMAGE unchanged.

    Alpha is dropped. 16 bits are reduced to 8 by their high byte, 8 bits extended to 16 by the factor 257. Colour
    becomes grey by BT.601 luma, grey becomes three equal channels. Without a format (None), the tensor is returned
    unchanged.
    """
    if image.name != PIXELS or wanted is None:
        return image
    if image.datatype == wanted.dtype and image.shape[2] == wanted.channels:
        return image
    colours = _without_alpha(image.to_array())
    return Tensor.of_array(PIXELS, _to_channels(to_dtype(colours, DTYPES[wanted.dtype]), wanted.channels))


def to_dtype(pixels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return uint8 or uint16 pixels as the other dtype; white stays white."""
    if pixels.dtype == dtype:
        return pixels
    return (pixels >> 8).astype(dtype) if dtype.itemsize == 1 else pixels.astype(dtype) * dtype.type(257)


def _without_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    channels = pixels.shape[2]
    return pixels[:, :, : channels - 1] if channels in (2, 4) else pixels


def _to_channels(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return _luma(pixels)
    return np.broadcast_to(pixels, (*pixels.shape[:2], channels))


def _luma(pixels: NDArray[Any]) -> NDArray[Any]:
    luma = np.empty((*pixels.shape[:2], 1), pixels.dtype)
    half = np.uint32(1 << 14)
    # A few rows at a time: the products of a whole image would take ten times its memory.
    for top in range(0, len(pixels), _ROWS):
        red, green, blue = np.moveaxis(pixels[top : top + _ROWS], -1, 0)
        luma[top : top + _ROWS, :, 0] = (red * _RED + green * _GREEN + blue * _BLUE + half) >> _BITS
    return luma


def _shape_advice(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return ": it has no pixels"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return ": if channels come first, send np.moveaxis(array, 0, -1)"
    if len(shape) == 4:
        return ": use segment_many(batch) for a batch"
    return ""
