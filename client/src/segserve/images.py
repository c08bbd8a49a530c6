"""Images as callers have them, as tensors for the wire and as pictures to draw on."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from segserve.errors import BadRequestError
from segserve.wire import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    ImageFile: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
    ImageLike: TypeAlias = ImageFile | Image.Image | NDArray[Any]

_ALLOWED = "a path, the bytes of an image file, an open binary file, a PIL image or a numpy array"


def image_tensor(image: ImageLike) -> Tensor:
    """Return the input that carries `image`: PIXELS for an array shaped (H, W) or (H, W, C), else IMAGE.

    A PIL image goes as PNG, so that the server prepares it as it would a file, turned as its EXIF data says.
    Raises `BadRequestError` for what cannot be sent, and `OSError` for a file that cannot be read.
    """
    if isinstance(image, np.ndarray):
        return Tensor.of_array("PIXELS", _pixels(image))
    encoded = _encoded(image)
    return Tensor.of_items("IMAGE", [_to_png(image) if encoded is None else encoded])


def picture(image: ImageLike) -> Image.Image:
    """Return an image as RGB, turned as its EXIF data says, to draw on; raises as `image_tensor` does."""
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        pixels = _pixels(image)
        shallow = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
        return Image.fromarray(shallow[:, :, 0] if shallow.shape[2] == 1 else shallow).convert("RGB")
    encoded = _encoded(image)
    if encoded is None:
        return _to_rgb(ImageOps.exif_transpose(image))  # type: ignore[arg-type]
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRequestError(f"an image that cannot be read: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16 bits to white where it should scale.
        return picture(np.asarray(image).astype(np.uint16))
    return image.convert("RGB")


def _encoded(image: ImageFile | Image.Image) -> bytes | None:
    """Return the bytes of an image file, or None for a PIL image."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if hasattr(image, "tobytes") and hasattr(image, "mode"):
        return None
    read = getattr(image, "read", None)
    if read is None:
        raise BadRequestError(f"an image is {_ALLOWED}; got {type(image).__name__}")
    content = read()
    if not isinstance(content, bytes):
        raise BadRequestError(f"an open file must be in binary mode; reading it gave {type(content).__name__}")
    return content


def _to_png(image: Any) -> bytes:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    buffer = io.BytesIO()
    try:
        # The fastest level: on one machine the time to compress is more than the time to send.
        upright.save(buffer, "PNG", compress_level=1, exif=b"")
    except OSError:
        raise BadRequestError(f"a PIL image of mode {image.mode!r} cannot be sent as PNG") from None
    return buffer.getvalue()


def _pixels(array: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels shaped (H, W, C), or raise `BadRequestError`."""
    if array.dtype not in (np.uint8, np.uint16):
        raise BadRequestError(f"an array of pixels is uint8 or uint16, got {array.dtype}")
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise BadRequestError(f"an array of pixels is shaped (H, W) or (H, W, channels), got {array.shape}")
    return np.ascontiguousarray(array)
