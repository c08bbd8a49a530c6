"""Decodes image files to pixels of a given colour and dtype; images that are too large are refused undecoded."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from segserve_builder.errors import BadImageError
from segserve_builder.imaging.orientation import turn, turn_back
from segserve_common.image_file import (
    END_OF_JPEG,
    PNG_SIGNATURE,
    START_OF_SCAN,
    WHITE_IS_ZERO,
    ImageFileError,
    ImageHeader,
    describe,
    jpeg_segments,
    png_chunks,
    shallow_tiff,
)
from segserve_common.image_file import windowed as windowed

Colour: TypeAlias = Literal["RGB", "GREY"]
Dtype: TypeAlias = Literal["UINT8", "UINT16"]
Orientation: TypeAlias = Literal["apply", "ignore"]

_ANIMATION_CHUNKS: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})
# Each inflates to up to 8 MB, which takes libpng 0.1 s, and none changes the pixels.
_COMPRESSED_CHUNKS: Final = frozenset({b"zTXt", b"iTXt", b"iCCP"})
# A scan of a progressive JPEG goes over all pixels, however short it is; encoders write about 10.
_MAX_SCANS: Final = 32
# Samples of a pixel by colour type. Data beyond those of the rows is inflated, too, and then dropped.
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_ROW_OVERHEAD_BYTES: Final = 16  # of encoders that end a block with each row
_PNG_OVERHEAD_BYTES: Final = 2**16
# libjpeg's warnings of files in which no pixel need be missing.
_HARMLESS: Final = re.compile("extraneous bytes|JFIF revision|Premature end of JPEG file")
_BEFORE_END: Final = re.compile("extraneous bytes before marker 0xd9")
_TO_COLOUR: Final = {
    (1, "RGB"): cv2.COLOR_GRAY2RGB,
    (3, "RGB"): cv2.COLOR_BGR2RGB,
    (4, "RGB"): cv2.COLOR_BGRA2RGB,
    (3, "GREY"): cv2.COLOR_BGR2GRAY,
    (4, "GREY"): cv2.COLOR_BGRA2GRAY,
}


@dataclass(frozen=True, slots=True)
class _PixelFormat:
    """The required pixels."""

    colour: Colour
    dtype: Dtype
    max_pixels: int
    window: tuple[int, int] | None = None

    def check_size(self, height: int, width: int) -> None:
        """Raise `BadImageError` for an image that is too large or empty."""
        if not 0 < height * width <= self.max_pixels:
            raise BadImageError(
                f"image of {height} x {width} = {height * width} pixels; "
                f"allowed are 1 to {self.max_pixels} (input.maxPixels)"
            )


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

    - The format follows from the first bytes, the size from the header before anything is decoded.
    - EXIF orientation (TIFF: its tag) is applied unless `orientation` is `ignore`; XMP's never is.
    - Of a JPEG, bytes that do not belong to the picture are passed over, and its end may be missing.
    - Alpha is dropped, as OpenCV, torchvision and Pillow's `convert("RGB")` do; nothing is composited.
    - Grey from colour is BT.601 luma, 0.299 R + 0.587 G + 0.114 B; of a JPEG the stored luma.
    - Of 16 bits the values of `window` are spread over all 16 first, and those beyond it cut off; 8 bits stay.
    - UINT8 from 16 bits is the high byte (`>> 8`), UINT16 from 8 bits is `* 257`, so that white stays white.
    - Of several frames the first (of an animated PNG its still image). Colour profiles are not applied.
    - An 8-bit TIFF has at most 178 million pixels (Pillow's own limit), whatever `max_pixels` says.

    Raises `BadImageError` for any other format, for more than `max_pixels` pixels, for data that is damaged
    or cut short, and for TIFF samples that are neither unsigned 8 bit nor interleaved unsigned 16 bit.
    """
    pixel_format = _PixelFormat(colour, dtype, max_pixels, window)
    try:
        file = describe(data)
        pixel_format.check_size(file.height, file.width)
        pixels = _decode(data, file, pixel_format)
    except ImageFileError as error:
        raise BadImageError(str(error)) from error
    return turn(pixels, file.orientation) if orientation == "apply" else pixels


def _decode(data: bytes, file: ImageHeader, pixel_format: _PixelFormat) -> NDArray[Any]:
    match file.format:
        case "JPEG":
            return _to_dtype(_decode_jpeg(data, pixel_format), pixel_format)
        case "PNG":
            return _decode_png(data, file, pixel_format)
        case "WebP":
            return _to_colour(_opencv_decode(data, file), pixel_format)
        case _:
            return _decode_tiff(data, file, pixel_format)


def _decode_jpeg(data: bytes, pixel_format: _PixelFormat) -> NDArray[Any]:
    colourspace = "RGB" if pixel_format.colour == "RGB" else "GRAY"
    try:
        _check_scans(data)
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        pixel_format.check_size(height, width)
        try:
            pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colourspace, strict=True)
        except ValueError as error:
            if not _HARMLESS.search(str(error)):
                raise
            pixels = _decode_warned(data, colourspace)
    except KeyError as error:  # simplejpeg's, of a header without a known subsampling
        raise BadImageError("JPEG image is damaged or cut short: its header is not complete") from error
    except ValueError as error:
        raise BadImageError(f"JPEG image is damaged or cut short: {error}") from error
    return pixels


def _decode_warned(data: bytes, colourspace: str) -> NDArray[Any]:
    """Return the pixels of a JPEG that libjpeg warns of, where none is missing; raises `ValueError` otherwise.

    It stops at the first warning. Thus what stands between segments is left out, and a missing end is added: data of
    the picture that are missing as well cause a warning of their own.
    """
    segments = list(jpeg_segments(data))
    end_of_image = data.find(END_OF_JPEG, segments[-1][2])
    parts = [data[:2]]
    for place, (marker, start, end) in enumerate(segments):
        segment = data[start - 4 : end]
        if segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1" + segment[10:]  # the only known revision
        elif marker == START_OF_SCAN:
            following = segments[place + 1][1] - 4 if place + 1 < len(segments) else end_of_image
            segment += data[end:following] if following >= 0 else data[end:]
        parts.append(segment)
    if end_of_image < 0 and sum(marker == START_OF_SCAN for marker, _, _ in segments) > 1:
        raise ValueError("it has several scans and no end, so that further ones may be missing")
    repaired = b"".join((*parts, END_OF_JPEG))
    try:
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(repaired, colourspace, strict=True)
    except ValueError as error:
        # Nothing is missing of a picture that has reached its end; before another scan, what follows could be damaged.
        if not _BEFORE_END.search(str(error)):
            raise
        pixels = simplejpeg.decode_jpeg(repaired, colourspace, strict=False)
    return pixels


def _check_scans(data: bytes) -> None:
    # Most files hold fewer of these bytes anywhere: also in a thumbnail, or in a film behind the picture.
    if data.count(b"\xff\xda") <= _MAX_SCANS:
        return
    scans = sum(marker == START_OF_SCAN for marker, _, _ in jpeg_segments(data))
    if scans > _MAX_SCANS:
        raise BadImageError(f"JPEG image has {scans} scans; allowed are at most {_MAX_SCANS}")


def _decode_png(data: bytes, file: ImageHeader, pixel_format: _PixelFormat) -> NDArray[Any]:
    # OpenCV must not see a chunk beyond the data: it takes the memory that it claims, up to 4 GB, before it reads.
    chunks = list(png_chunks(data))
    _check_png_data(data, sum(end - start for kind, start, end in chunks if kind == b"IDAT"))
    # OpenCV 4 and 5 differ in which frame of an animation is the first: leave it the still image.
    left_out = _COMPRESSED_CHUNKS | (_ANIMATION_CHUNKS if any(kind == b"acTL" for kind, _, _ in chunks) else set())
    if any(kind in left_out for kind, _, _ in chunks):
        data = PNG_SIGNATURE + b"".join(data[start:end] for kind, start, end in chunks if kind not in left_out)
    return _to_colour(_opencv_decode(data, file), pixel_format)


def _check_png_data(data: bytes, held: int) -> None:
    """Refuse more compressed data than the rows could need, which would be inflated to a thousand times as much."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    row = (width * depth * _PNG_SAMPLES.get(colour, 4) + 7) // 8 + 1
    allowed = 2 * height * row + _PNG_ROW_OVERHEAD_BYTES * height + _PNG_OVERHEAD_BYTES
    if held > allowed:
        raise BadImageError(
            f"PNG image of {height} x {width} pixels has {held} bytes of compressed data; allowed are at most {allowed}"
        )


def _decode_tiff(data: bytes, file: ImageHeader, pixel_format: _PixelFormat) -> NDArray[Any]:
    pixel_format.check_size(*file.tile)
    # Pillow has no 16-bit colour; OpenCV misreads separate planes, and grey with alpha.
    if not file.is_deep():
        pixels = shallow_tiff(data, file)
        return _to_colour(pixels if pixels.ndim == 2 else pixels[..., ::-1], pixel_format)
    pixels = _opencv_decode(data, file)
    pixels = _to_colour(~pixels if file.photometric == WHITE_IS_ZERO else pixels, pixel_format)
    # OpenCV applies the orientation by itself.
    return turn_back(pixels, file.orientation)


def _opencv_decode(data: bytes, file: ImageHeader) -> NDArray[Any]:
    """Return what is stored, blue first: (H, W), (H, W, 3) or (H, W, 4) of 8 or 16 bits."""
    what = f"{file.format} image of {file.height} x {file.width} pixels"
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImageError(f"{what} cannot be decoded: {error.err}") from error
    if pixels is None:
        raise BadImageError(f"{what} is damaged or cut short")
    return pixels


def _to_colour(pixels: NDArray[Any], pixel_format: _PixelFormat) -> NDArray[Any]:
    """Turn grey, BGR or BGRA into (H, W, 3) RGB or (H, W, 1) grey, of the wanted dtype."""
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
