"""Decodes image files to pixels of a given colour and dtype; images that are too large are refused undecoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from segserve_builder.errors import BadImageError
from segserve_builder.imaging.json_image import image_file_of
from segserve_common.image_file import (
    PNG_SIGNATURE,
    UPRIGHT,
    WHITE_IS_ZERO,
    ImageFileError,
    ImageHeader,
    check_size,
    describe,
    png_chunks,
    shallow_tiff,
)
from segserve_common.image_file import windowed as windowed
from segserve_common.jpeg_file import Colour, decode_jpeg

Dtype: TypeAlias = Literal["UINT8", "UINT16"]
Orientation: TypeAlias = Literal["apply", "ignore"]

_ANIMATION_CHUNKS: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})
# Each inflates to up to 8 MB, which takes libpng 0.1 s, and none changes the pixels.
_COMPRESSED_CHUNKS: Final = frozenset({b"zTXt", b"iTXt", b"iCCP"})
# Samples of a pixel by colour type. Data beyond the rows is also inflated, and then dropped.
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_ROW_OVERHEAD_BYTES: Final = 16  # of encoders that end a block with each row
_PNG_OVERHEAD_BYTES: Final = 2**16
_TO_COLOUR: Final = {
    (1, "RGB"): cv2.COLOR_GRAY2RGB,
    (3, "RGB"): cv2.COLOR_BGR2RGB,
    (4, "RGB"): cv2.COLOR_BGRA2RGB,
    (3, "GREY"): cv2.COLOR_BGR2GRAY,
    (4, "GREY"): cv2.COLOR_BGRA2GRAY,
}
_INVERSE: Final = {6: 8, 8: 6}  # the other six undo themselves


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return stored pixels (H, W, C) upright, given their orientation 1..8.

    The dtype stays. Raises `ValueError` for another orientation.
    """
    if orientation == UPRIGHT:
        return pixels
    match orientation:
        case 2:
            turned: NDArray[Any] = cv2.flip(pixels, 1)
        case 3:
            turned = cv2.rotate(pixels, cv2.ROTATE_180)
        case 4:
            turned = cv2.flip(pixels, 0)
        case 5:
            turned = cv2.transpose(pixels)
        case 6:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            turned = cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
        case 8:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            raise ValueError(f"orientation must be within 1..8, got {orientation}")
    # OpenCV drops the last axis of one-channel images.
    return turned.reshape(*turned.shape[:2], pixels.shape[2])


def turn_back(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo `turn`.

    Pixels are (H, W, C) of any dtype.
    """
    return turn(pixels, _INVERSE.get(orientation, orientation))


@dataclass(frozen=True, slots=True)
class _PixelFormat:
    """The required pixels."""

    colour: Colour
    dtype: Dtype
    max_pixels: int
    window: tuple[int, int] | None = None


def decode_image(
    data: bytes,
    *,
    colour: Colour,
    dtype: Dtype,
    max_pixels: int,
    orientation: Orientation = "apply",
    window: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """Return the pixels of a JPEG, PNG, WebP or TIFF file, uint8 or uint16 (H, W, C): C is 3 for RGB, 1 for GREY.

    - The file may be in base64, in a JSON object.
    - The format follows from the first bytes, the size from the header before anything is decoded.
    - EXIF orientation (TIFF: its tag) is applied unless `orientation` is `ignore`; XMP's never is.
    - Of a JPEG, bytes that do not belong to the picture are passed over, and its end may be missing.
    - Alpha is dropped, as OpenCV, torchvision and Pillow's `convert("RGB")` do; nothing is composited.
    - Grey from colour is BT.601 luma, 0.299 R + 0.587 G + 0.114 B; of a JPEG the stored luma.
    - In 16-bit images, values of `window` are first spread over all 16 bits, and others cut off; 8 bits
      stay.
    - UINT8 from 16 bits is the high byte (`>> 8`), UINT16 from 8 bits is `* 257`, so that white stays white.
    - Of several frames the first (of an animated PNG its still image). Colour profiles are not applied.
    - An 8-bit TIFF has at most 178 million pixels (Pillow's own limit), whatever `max_pixels` says.

    Raises `BadImageError` for any other format, for more than `max_pixels` pixels, for data that is damaged
    or cut short, and for TIFF samples that are neither unsigned 8 bit nor interleaved unsigned 16 bit.
    """
    pixel_format = _PixelFormat(colour, dtype, max_pixels, window)
    try:
        data = image_file_of(data)
        file = describe(data)
        check_size(file.height, file.width, max_pixels)
        pixels = _decode(data, file, pixel_format)
    except ImageFileError as error:
        raise BadImageError(str(error)) from error
    return turn(pixels, file.orientation) if orientation == "apply" else pixels


def pixels_in(data: bytes) -> int:
    """Return how many pixels a file has by its header; 0 for a file that `decode_image` refuses for its header."""
    try:
        file = describe(image_file_of(data))
    except ImageFileError:
        return 0
    return file.height * file.width


def _decode(data: bytes, file: ImageHeader, pixel_format: _PixelFormat) -> NDArray[Any]:
    match file.format:
        case "JPEG":
            return _to_dtype(decode_jpeg(data, pixel_format.colour, pixel_format.max_pixels), pixel_format)
        case "PNG":
            return _decode_png(data, file, pixel_format)
        case "WebP":
            return _to_colour(_opencv_decode(data, file), pixel_format)
        case _:
            check_size(*file.tile, pixel_format.max_pixels)
            file.check_compression()
            # Pillow has no 16-bit colour; OpenCV misreads separate planes, and grey with alpha.
            if not file.is_deep():
                pixels = shallow_tiff(data, file)
                return _to_colour(pixels if pixels.ndim == 2 else pixels[..., ::-1], pixel_format)
            pixels = _opencv_decode(data, file)
            pixels = _to_colour(~pixels if file.photometric == WHITE_IS_ZERO else pixels, pixel_format)
            # OpenCV applies the orientation by itself.
            return turn_back(pixels, file.orientation)


def _decode_png(data: bytes, file: ImageHeader, pixel_format: _PixelFormat) -> NDArray[Any]:
    # OpenCV must not see a chunk beyond the data: it takes the memory that it claims, up to 4 GB, before it reads.
    chunks = list(png_chunks(data))
    held = sum(end - start for kind, start, end in chunks if kind == b"IDAT")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    row = (width * depth * _PNG_SAMPLES.get(colour, 4) + 7) // 8 + 1
    allowed = 2 * height * row + _PNG_ROW_OVERHEAD_BYTES * height + _PNG_OVERHEAD_BYTES
    if held > allowed:
        raise BadImageError(
            f"PNG image of {width} x {height} pixels has {held} bytes of compressed data; allowed are at most {allowed}"
        )
    # OpenCV 4 and 5 differ in which frame of an animation is the first: leave it the still image.
    left_out = _COMPRESSED_CHUNKS | (_ANIMATION_CHUNKS if any(kind == b"acTL" for kind, _, _ in chunks) else set())
    if any(kind in left_out for kind, _, _ in chunks):
        data = PNG_SIGNATURE + b"".join(data[start:end] for kind, start, end in chunks if kind not in left_out)
    return _to_colour(_opencv_decode(data, file), pixel_format)


def _opencv_decode(data: bytes, file: ImageHeader) -> NDArray[Any]:
    """Return what is stored, blue first: (H, W), (H, W, 3) or (H, W, 4) of 8 or 16 bits."""
    what = f"{file.format} image of {file.width} x {file.height} pixels"
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImageError(f"{what} cannot be decoded: {error.err}") from error
    if pixels is None:
        raise BadImageError(f"{what} is damaged or cut short")
    return pixels


def _to_colour(pixels: NDArray[Any], pixel_format: _PixelFormat) -> NDArray[Any]:
    """Turn grey, BGR or BGRA into (H, W, 3) RGB or (H, W, 1) grey, of the target dtype."""
    pixels = _to_dtype(pixels, pixel_format)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    code = _TO_COLOUR.get((channels, pixel_format.colour))
    converted: NDArray[Any] = pixels if code is None else cv2.cvtColor(pixels, code)
    return converted.reshape(*pixels.shape[:2], 3 if pixel_format.colour == "RGB" else 1)


def _to_dtype(pixels: NDArray[Any], pixel_format: _PixelFormat) -> NDArray[Any]:
    if pixel_format.window is not None and pixels.dtype == np.uint16:
        pixels = windowed(pixels, pixel_format.window)
    if pixel_format.dtype == "UINT8":
        return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)
