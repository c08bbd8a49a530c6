"""Images as callers provide them, arrays of pixels included: converted to tensors and to pictures for drawing."""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.errors import package_of_extra
from segserve.results.values import PixelFormat
from segserve_common.errors import BadRequestError
from segserve_common.image_file import (
    BLACK_IS_ZERO,
    COLOUR_MAP,
    WHITE_IS_ZERO,
    ImageFileError,
    ImageHeader,
    base64_in,
    check_opened,
    coloured,
    describe,
    exif_orientation,
    shallow_tiff,
    turn,
    windowed,
)
from segserve_common.kserve import DTYPES, Tensor

if TYPE_CHECKING:
    from PIL import Image


PIXELS: Final = "PIXELS"
# BT.601 in fixed point, as OpenCV computes it: an array gives the same grey as its file does on the server.
_RED, _GREEN, _BLUE, _BITS = (np.uint32(number) for number in (9798, 19235, 3735, 15))
_ROWS: Final = 64
_CHANNELS: Final = (1, 2, 3, 4)
# Pillow's own limit for images that are decoded as a whole: 270 MB for RGB.
MAX_DECODED_PIXELS: Final = 89_478_485
LITTLE: Final = 4096
"""Values of 16 bits below it, as of 12-bit cameras, are nearly black to a model."""


def pixels_of(array: NDArray[Any], name: str = "array") -> NDArray[Any]:
    """Return an array as (H, W, C), uint8 or uint16, with 1 to 4 channels.

    Raises `BadRequestError` otherwise, with all reasons and how to convert what the caller calls `name`.
    """
    shaped = array[:, :, np.newaxis] if array.ndim == 2 else array
    is_typed = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    if is_typed and shaped.ndim == 3 and shaped.shape[2] in _CHANNELS and shaped.size:
        return shaped
    raise BadRequestError(
        "an array of pixels must be uint8 or uint16, shaped (H, W) or (H, W, C) with 1 to 4 channels, got "
        f"{array.dtype} {array.shape}{_conversion(array, name, is_typed=is_typed)}"
    )


def _conversion(array: NDArray[Any], name: str, *, is_typed: bool) -> str:
    """Return the reasons why an array cannot be sent, and the expression that can, if there is one."""
    if 0 in array.shape:
        return ": it has no pixels"
    code: str | None = name
    reasons = []
    if array.ndim not in (2, 3, 4):
        code = None
    elif array.ndim > 2 and array.shape[-1] not in _CHANNELS:
        code = None
        if array.shape[-3] in (1, 3, 4):
            reasons.append("channels come first")
            code = f"np.moveaxis({name}, {array.ndim - 3}, -1)"
    if not is_typed:
        reason, code = _retyped(array, code)
        reasons.append(reason)
    if array.ndim == 4:
        reasons.append("it is a batch")
        code = code and f"segment_many({code}, ...)"
    return "".join((f": {', '.join(reasons)}" if reasons else "", f": send {code}" if code else ""))


def _retyped(array: NDArray[Any], code: str | None) -> tuple[str, str | None]:
    """Return what an array's values are, and the expression of `code` as uint8 or uint16; None for other values."""
    kind = array.dtype.kind
    if kind == "b":
        return "its values are a mask's", code and f"{code}.astype(np.uint8) * 255"
    if kind not in "fiu":
        return "its values are not numbers", None
    low, high = array.min(), array.max()
    reason = f"its values are from {low:.4g} to {high:.4g}"
    if not (low >= 0 and high <= 0xFFFF):
        return f"{reason}: send the image as it was before it was normalised or scaled", None
    rounded = code and (f"{code}.round()" if kind == "f" else code)
    if kind == "f" and high <= 1:
        rounded = code and f"({code} * 255).round()"
    return reason, rounded and f"{rounded}.astype(np.{'uint8' if high <= 0xFF else 'uint16'})"


def to_pixel_format(image: Tensor, wanted: PixelFormat | None) -> Tensor:
    """Return PIXELS in a model's format, converted as the server converts files; IMAGE is unchanged.

    Alpha is dropped. For 16 bits, the values of the model's window count, and their high byte becomes 8 bits; 8 bits
    are extended to 16 by the factor 257. Colour becomes grey by BT.601 luma, grey becomes three equal channels. Without
    a format (None), the tensor is returned unchanged.
    """
    if image.name != PIXELS or wanted is None:
        return image
    if image.datatype == wanted.dtype and image.shape[2] == wanted.channels:
        return image
    pixels = image.to_array()
    channels = pixels.shape[2]
    colours = pixels[:, :, : channels - 1] if channels in (2, 4) else pixels
    if wanted.window is not None and colours.dtype == np.uint16 and wanted.dtype == "UINT8":
        colours = windowed(colours, wanted.window)  # the server sees no more of 16 bits
    return Tensor.of_array(PIXELS, _to_channels(to_dtype(colours, DTYPES[wanted.dtype]), wanted.channels))


def to_dtype(pixels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return uint8 or uint16 pixels as the other dtype; white stays white."""
    if pixels.dtype == dtype:
        return pixels
    return (pixels >> 8).astype(dtype) if dtype.itemsize == 1 else pixels.astype(dtype) * dtype.type(257)


def _to_channels(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        luma = np.empty((*pixels.shape[:2], 1), pixels.dtype)
        half = np.uint32(1 << 14)
        # A few rows at a time: the products of a whole image would take ten times its memory.
        for top in range(0, len(pixels), _ROWS):
            red, green, blue = np.moveaxis(pixels[top : top + _ROWS], -1, 0)
            luma[top : top + _ROWS, :, 0] = (red * _RED + green * _GREEN + blue * _BLUE + half) >> _BITS
        return luma
    return np.broadcast_to(pixels, (*pixels.shape[:2], channels))


class ReadableFile(Protocol):
    """An open binary file, or an object with the same `read`: a urllib response, an upload."""

    def read(self) -> bytes:
        """Return all bytes."""


class FetchedImage(Protocol):
    """An HTTP response of httpx or requests that was fetched by the caller."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""

    @property
    def content(self) -> Any:
        """The bytes of the body."""


class SupportsArray(Protocol):
    """An object that numpy can convert: a torch tensor on the CPU, an array of another library."""

    def __array__(self) -> Any:
        """Return the array."""


class VideoFrame(Protocol):
    """A frame of PyAV, which is turned as its file says."""

    def to_ndarray(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pixels, not turned."""


EncodedImage: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | ReadableFile | FetchedImage"
ImageLike: TypeAlias = "EncodedImage | Image.Image | NDArray[Any] | SupportsArray | VideoFrame"

_ALLOWED: Final = (
    "a path, the bytes of an image file, an open binary file, an HTTP response, a PIL image, a frame of PyAV or an "
    "array (H, W[, C])"
)
_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
_LONGEST_NAME: Final = 255
_SHOWN: Final = 80
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


def image_size(image: Tensor) -> tuple[int, int] | None:
    """Return the height and width of the image in an input tensor, for IMAGE from the file's header; None if unknown.

    They are the stored ones: EXIF rotation is not applied.
    """
    if image.name == PIXELS:
        return image.shape[0], image.shape[1]
    (encoded,) = image.to_items()
    with suppress(ImageFileError):
        file = describe(encoded)
        return file.height, file.width
    return None


def picture(image: ImageLike) -> Image.Image:
    """Return an image as RGB, rotated as its EXIF data says, for drawing; raises as `image_tensor` does."""
    encoded = _encoded(image)
    pixels = _decoded(image) if encoded is None else file_pixels(encoded)
    from PIL import Image

    shallow = to_dtype(pixels, np.dtype(np.uint8))
    return Image.fromarray(shallow[:, :, 0] if shallow.shape[2] == 1 else shallow).convert("RGB")


def file_pixels(encoded: bytes) -> NDArray[Any]:
    """Return the pixels of an image file (H, W, C), turned as on the server; raises `BadRequestError`.

    16 bits are kept of a TIFF and a grey PNG. A JPEG whose scan ends early is refused where the server's decoder is
    installed.
    """
    from PIL import Image

    try:
        file = describe(encoded)
        file.check_compression()
        if file.format == "TIFF":
            pixels = _deep_tiff(encoded, file) if file.is_deep() else shallow_tiff(encoded, file)
            return pixels_of(turn(pixels, file.orientation))
        if file.format == "JPEG" and (decoded := _served_jpeg(encoded, file)) is not None:
            return decoded
        with Image.open(io.BytesIO(encoded), formats=(file.format.upper(),)) as opened:
            return turn(_mode_pixels(opened), file.orientation)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRequestError(f"the image cannot be read: {error}") from error


def _served_jpeg(encoded: bytes, file: ImageHeader) -> NDArray[Any] | None:
    """Return a JPEG as the server decodes it, which sees whether a scan ends early; None without its decoder."""
    try:
        from segserve_common.jpeg_file import decode_jpeg
    except ImportError:
        return None
    pixels = decode_jpeg(encoded, "GREY" if file.channels == 1 else "RGB", file.height * file.width)
    return turn(pixels, file.orientation)


def _deep_tiff(encoded: bytes, file: ImageHeader) -> NDArray[Any]:
    tifffile = package_of_extra("tifffile", "batch", "a TIFF of 16 bits")
    pixels: NDArray[Any] = tifffile.imread(io.BytesIO(encoded), key=0)
    return ~pixels if file.photometric == WHITE_IS_ZERO else pixels


def _encoded(image: Any) -> bytes | None:
    """Return the bytes of an image file, or None for a decoded image."""
    match image:
        case bytes():
            return image
        case bytearray() | memoryview():
            return bytes(image)
        case str() | os.PathLike():
            return path_of(image).read_bytes()
    if isinstance(image, np.ndarray) or _is_pil(image) or hasattr(image, "__array__") or hasattr(image, "to_ndarray"):
        return None
    status = getattr(image, "status_code", getattr(image, "status", None))
    if isinstance(status, int) and status != 200:
        raise BadRequestError(f"the response is not an image: its HTTP status is {status}, not 200")
    read: Callable[[], object] | None = getattr(image, "read", None)
    if inspect.iscoroutinefunction(read):
        raise BadRequestError(f"await the read() of the {type(image).__name__} and pass the bytes")
    if hasattr(image, "status_code"):
        try:
            content = image.content
        except RuntimeError as error:  # httpx's, of a response that is still a stream
            raise BadRequestError(f"read the response before passing it: {error}") from error
    else:
        if read is None:
            advice = ": use segment_many for several images" if isinstance(image, list | tuple) else ""
            raise BadRequestError(f"an image must be {_ALLOWED}; got {type(image).__name__}{advice}")
        content = read()
    if not isinstance(content, bytes):
        raise BadRequestError(f"an open file must be in binary mode; reading it gave {type(content).__name__}")
    return content


def path_of(image: str | os.PathLike[str]) -> Path:
    """Return the path that a caller passes; raises `BadRequestError` for a URL, and for text that is no path."""
    if isinstance(image, str):
        seen = f"{image[:_SHOWN]!r}{' ...' if len(image) > _SHOWN else ''}"
        if found := _URL.match(image):
            advice = "fetch it and pass the response: segment(httpx.get(url), ...)"
            if found[0] == "data:":
                advice = "decode its base64 and pass the bytes"
            raise BadRequestError(f"the client does not fetch URLs, got {seen}; {advice}")
        base64 = base64_in(image[:_SHOWN].encode(errors="replace"))
        is_odd = not image or len(image) > _LONGEST_NAME or base64 or not {"\0", "\n"}.isdisjoint(image)
        if is_odd and not os.path.exists(image):  # noqa: PTH110  Path.exists raises for a name that is too long
            advice = f": {base64.partition(';')[0]}, pass base64.b64decode(text)" if base64 else ""
            raise BadRequestError(f"this text is no path of a file, got {len(image)} characters, {seen}{advice}")
    return Path(image)


def _is_pil(image: Any) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "mode")


def _decoded(image: Any) -> NDArray[Any]:
    if _is_pil(image):
        pixels = _mode_pixels(image)  # which loads a TIFF, that Pillow turns, and what comes behind the pixels
        return turn(pixels, exif_orientation(image.info.get("exif") or b""))
    if hasattr(image, "to_ndarray"):  # a frame of PyAV, which cameras that are held upright store lying
        return pixels_of(np.rot90(image.to_ndarray(format="rgb24"), getattr(image, "rotation", 0) // 90))
    try:
        array = np.asarray(image)
    except (TypeError, RuntimeError) as error:  # torch's, of a tensor on a device or with a gradient
        seen = f"numpy cannot convert this {type(image).__name__} to an array: {error}"
        try:
            array = np.asarray(image.detach().cpu())
        except (AttributeError, TypeError, RuntimeError):
            raise BadRequestError(seen) from error
        name = "image.detach().cpu().numpy()"
        try:
            pixels_of(array, name)
        except BadRequestError as refused:
            raise BadRequestError(f"{seen}; {refused.message}") from error
        raise BadRequestError(f"{seen}: send {name}") from error
    return pixels_of(array, "array" if isinstance(image, np.ndarray) else "np.asarray(image)")


def _mode_pixels(image: Image.Image) -> NDArray[Any]:
    # A TIFF as Pillow has opened it, which keeps what it says: of some kinds Pillow's values are not the picture's.
    tags: Mapping[int, Any] | None = getattr(image, "tag_v2", None)
    photometric = None
    if tags is not None:
        try:
            photometric = check_opened(tags, getattr(image, "n_frames", 1))
            if (image.mode, photometric) == ("L", BLACK_IS_ZERO) and COLOUR_MAP in tags:
                return pixels_of(coloured(np.asarray(image), tags[COLOUR_MAP]))
        except ImageFileError as error:
            raise BadRequestError(f"the PIL image cannot be sent: {error}") from error
    if image.mode.startswith("I"):
        array = np.asarray(image)
        low, high = array.min(), array.max()
        if array.dtype.itemsize > 2 and not 0 <= low <= high <= 0xFFFF:
            raise BadRequestError(
                f"a PIL image of 32-bit integers has values from {low} to {high}; allowed: 0 to 65535"
            )
        if image.mode == "I" and getattr(image, "format", None) is None and high <= 0xFF:
            raise BadRequestError(
                f"a PIL image of 32-bit integers has values from {low} to {high}, which may be of 8 or of 16 bits: "
                'send image.convert("L") for 8, np.asarray(image).astype(np.uint16) for 16'
            )
        pixels = array.astype(np.uint16)
        return pixels_of(~pixels if photometric == WHITE_IS_ZERO else pixels)
    if image.mode not in _PIL_MODES:
        allowed = ", ".join((*_PIL_MODES, "I", "I;16"))
        raise BadRequestError(f"a PIL image of mode {image.mode!r} cannot be sent; allowed: {allowed}")
    wanted = _PIL_MODES[image.mode]
    return pixels_of(np.asarray(image if image.mode == wanted else image.convert(wanted)))
