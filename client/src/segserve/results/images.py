"""Images as callers provide them: converted to tensors for requests and to pictures for drawing."""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.results.pixels import PIXELS, pixels_of, to_dtype
from segserve_common.errors import BadRequestError
from segserve_common.kserve import Tensor

if TYPE_CHECKING:
    from PIL import Image


class ReadableFile(Protocol):
    """An open binary file, or an object with the same `read`: a urllib response, an upload."""

    def read(self) -> bytes:
        """Return all bytes."""
        ...


class FetchedImage(Protocol):
    """An HTTP response of httpx or requests that was fetched by the caller."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""
        ...

    @property
    def content(self) -> Any:
        """The bytes of the body."""
        ...


class SupportsArray(Protocol):
    """An object that numpy can convert: a torch tensor on the CPU, an array of another library."""

    def __array__(self) -> Any:
        """Return the array."""
        ...


EncodedImage: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | ReadableFile | FetchedImage"
ImageLike: TypeAlias = "EncodedImage | Image.Image | NDArray[Any] | SupportsArray"

_ALLOWED: Final = (
    "a path, the bytes of an image file, an open binary file, an HTTP response, a PIL image or an array (H, W[, C])"
)
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
_PIL_MODES: Final = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "P": "RGB",
    "PA": "RGB",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}
"""8-bit modes, and the mode that each is sent as."""


def image_tensor(image: ImageLike) -> Tensor:
    """Return the input tensor for an image: the bytes of a file as IMAGE, decoded images as PIXELS (H, W, C).

    A PIL image is rotated as its EXIF data says. The caller's object is not changed. Raises `BadRequestError` for an
    object that cannot be sent, and `OSError` for a file that cannot be read.
    """
    encoded = _encoded(image)
    if encoded is not None:
        return Tensor.of_items("IMAGE", [encoded])
    return Tensor.of_array(PIXELS, _decoded(image))


def picture(image: ImageLike) -> Image.Image:
    """Return an image as RGB, rotated as its EXIF data says, for drawing; raises as `image_tensor` does."""
    from PIL import Image

    encoded = _encoded(image)
    if encoded is None:
        return _to_rgb(_decoded(image))
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return _to_rgb(_pil_pixels(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRequestError(f"the image cannot be read: {error}") from error


def _to_rgb(pixels: NDArray[Any]) -> Image.Image:
    from PIL import Image

    shallow = to_dtype(pixels, np.dtype(np.uint8))
    return Image.fromarray(shallow[:, :, 0] if shallow.shape[2] == 1 else shallow).convert("RGB")


def _encoded(image: Any) -> bytes | None:
    """Return the bytes of an image file, or None for a decoded image."""
    match image:
        case bytes():
            return image
        case bytearray() | memoryview():
            return bytes(image)
        case str() | os.PathLike():
            return _file(image)
    if isinstance(image, np.ndarray) or _is_pil(image) or hasattr(image, "__array__"):
        return None
    _check_status(image)
    content = _content(image)
    if not isinstance(content, bytes):
        raise BadRequestError(f"an open file must be in binary mode; reading it gave {type(content).__name__}")
    return content


def _file(path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and _URL.match(path):
        raise BadRequestError(
            f"the client does not fetch URLs, got {path[:200]!r}; fetch it and pass the response: "
            "segment(httpx.get(url), ...)"
        )
    return Path(path).read_bytes()


def _is_pil(image: Any) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "mode")


def _check_status(image: Any) -> None:
    status = getattr(image, "status_code", getattr(image, "status", None))
    if isinstance(status, int) and status != 200:
        raise BadRequestError(f"the response is not an image: its HTTP status is {status}, not 200")


def _content(image: Any) -> object:
    read: Callable[[], object] | None = getattr(image, "read", None)
    if inspect.iscoroutinefunction(read):
        raise BadRequestError(f"await the read() of the {type(image).__name__} and pass the bytes")
    if hasattr(image, "status_code"):
        try:
            return image.content
        except RuntimeError as error:  # httpx's, of a response that is still a stream
            raise BadRequestError(f"read the response before passing it: {error}") from error
    if read is None:
        advice = ": use segment_many for several images" if isinstance(image, list | tuple) else ""
        raise BadRequestError(f"an image must be {_ALLOWED}; got {type(image).__name__}{advice}")
    return read()


def _decoded(image: Any) -> NDArray[Any]:
    if _is_pil(image):
        return _pil_pixels(image)
    try:
        array = np.asarray(image)
    except (TypeError, RuntimeError) as error:  # torch's, of a tensor on a device or with a gradient
        raise BadRequestError(f"numpy cannot convert this {type(image).__name__} to an array: {error}") from error
    return pixels_of(array)


def _pil_pixels(image: Image.Image) -> NDArray[Any]:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return pixels_of(_sixteen_bits(np.asarray(upright)))
    if image.mode not in _PIL_MODES:
        allowed = ", ".join((*_PIL_MODES, "I", "I;16"))
        raise BadRequestError(f"a PIL image of mode {image.mode!r} cannot be sent; allowed: {allowed}")
    wanted = _PIL_MODES[image.mode]
    return pixels_of(np.asarray(upright if upright.mode == wanted else upright.convert(wanted)))


def _sixteen_bits(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.itemsize > 2 and (array.min() < 0 or array.max() > 0xFFFF):
        raise BadRequestError(
            f"a PIL image of 32-bit integers has values from {array.min()} to {array.max()}; allowed: 0 to 65535"
        )
    return array.astype(np.uint16)
