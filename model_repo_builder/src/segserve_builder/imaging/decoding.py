"""Decodes image files to pixels of a given colour and dtype; images that are too large are refused undecoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from segserve_builder.errors import BadImageError
from segserve_builder.imaging.exif import (
    MAX_PARTS,
    START_OF_SCAN,
    UPRIGHT,
    exif_orientation,
    jpeg_orientation,
    jpeg_segments,
    turn,
    turn_back,
    webp_orientation,
)

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

Colour: TypeAlias = Literal["RGB", "GREY"]
Dtype: TypeAlias = Literal["UINT8", "UINT16"]
Orientation: TypeAlias = Literal["apply", "ignore"]

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_ANIMATION_CHUNKS: Final = frozenset({b"acTL", b"fcTL", b"fdAT"})
# Each inflates to up to 8 MB, which takes libpng 0.1 s, and none changes the pixels.
_COMPRESSED_CHUNKS: Final = frozenset({b"zTXt", b"iTXt", b"iCCP"})
# A scan of a progressive JPEG goes over all pixels, however short it is; encoders write about 10.
_MAX_SCANS: Final = 32
# Samples of a pixel by colour type. Data beyond those of the rows is inflated, too, and then dropped.
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_ROW_OVERHEAD_BYTES: Final = 16  # of encoders that end a block with each row
_PNG_OVERHEAD_BYTES: Final = 2**16
_TILE_WIDTH, _TILE_LENGTH, _ORIENTATION, _PLANAR = 322, 323, 274, 284
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT, _PHOTOMETRIC = 258, 277, 339, 262
_UNSIGNED = _INTERLEAVED = 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_TO_COLOUR: Final = {
    (1, "RGB"): cv2.COLOR_GRAY2RGB,
    (3, "RGB"): cv2.COLOR_BGR2RGB,
    (4, "RGB"): cv2.COLOR_BGRA2RGB,
    (3, "GREY"): cv2.COLOR_BGR2GRAY,
    (4, "GREY"): cv2.COLOR_BGRA2GRAY,
}


@dataclass(frozen=True, slots=True)
class _PixelFormat:
    """The required pixels; `oriented` tells whether EXIF orientation is applied."""

    colour: Colour
    dtype: Dtype
    max_pixels: int
    oriented: bool

    def check_size(self, height: int, width: int) -> None:
        """Raise `BadImageError` for an image that is too large or empty."""
        if not 0 < height * width <= self.max_pixels:
            raise BadImageError(
                f"image of {height} x {width} = {height * width} pixels; "
                f"allowed are 1 to {self.max_pixels} (input.maxPixels)"
            )


def decode_image(
    data: bytes, *, colour: Colour, dtype: Dtype, max_pixels: int, orientation: Orientation = "apply"
) -> NDArray[Any]:
    """Return the pixels of a JPEG, PNG, WebP or TIFF file, uint8 or uint16 (H, W, C): C is 3 for RGB, 1 for GREY.

    - The format follows from the first bytes, the size from the header before anything is decoded.
    - EXIF orientation (TIFF: its tag) is applied unless `orientation` is `ignore`.
    - Alpha is dropped, as OpenCV, torchvision and Pillow's `convert("RGB")` do; nothing is composited.
    - Grey from colour is BT.601 luma, 0.299 R + 0.587 G + 0.114 B; of a JPEG the stored luma.
    - UINT8 from 16 bits is the high byte (`>> 8`), UINT16 from 8 bits is `* 257`, so that white stays white.
    - Of several frames the first (of an animated PNG its still image). Colour profiles are not applied.
    - An 8-bit TIFF has at most 178 million pixels (Pillow's own limit), whatever `max_pixels` says.

    Raises `BadImageError` for any other format, for more than `max_pixels` pixels, for data that is damaged
    or cut short, and for TIFF samples that are neither unsigned 8 bit nor interleaved unsigned 16 bit.
    """
    pixel_format = _PixelFormat(colour, dtype, max_pixels, orientation == "apply")
    return _decoder(data)(data, pixel_format)


def _decoder(data: bytes) -> Callable[[bytes, _PixelFormat], NDArray[Any]]:
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg
    if data[:8] == _PNG_SIGNATURE:
        return _decode_png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _decode_webp
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _decode_tiff
    observed = f"its first bytes are {bytes(data[:8])!r}" if data else "it is empty"
    raise BadImageError(f"image is not a JPEG, PNG, WebP or TIFF file: {observed}")


def _decode_jpeg(data: bytes, pixel_format: _PixelFormat) -> NDArray[Any]:
    try:
        _check_scans(data)
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        pixel_format.check_size(height, width)
        colourspace = "RGB" if pixel_format.colour == "RGB" else "GRAY"
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colourspace, strict=True)
    except ValueError as error:
        raise BadImageError(f"JPEG image is damaged or cut short: {error}") from error
    pixels = _to_dtype(pixels, pixel_format.dtype)
    return turn(pixels, jpeg_orientation(data)) if pixel_format.oriented else pixels


def _check_scans(data: bytes) -> None:
    # Most files hold fewer of these bytes anywhere: also in a thumbnail, or in a film behind the picture.
    if data.count(b"\xff\xda") <= _MAX_SCANS:
        return
    scans = sum(marker == START_OF_SCAN for marker, _, _ in jpeg_segments(data))
    if scans > _MAX_SCANS:
        raise BadImageError(f"JPEG image has {scans} scans; allowed are at most {_MAX_SCANS}")


def _decode_png(data: bytes, pixel_format: _PixelFormat) -> NDArray[Any]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadImageError(f"PNG image is damaged or cut short: no header in its {len(data)} bytes")
    width, height = struct.unpack_from(">II", data, 16)
    pixel_format.check_size(height, width)
    chunks = list(_png_chunks(data))
    _check_png_data(data, sum(end - start for kind, start, end in chunks if kind == b"IDAT"))
    # OpenCV 4 and 5 differ in which frame of an animation is the first: leave it the still image.
    left_out = _COMPRESSED_CHUNKS | (_ANIMATION_CHUNKS if any(kind == b"acTL" for kind, _, _ in chunks) else set())
    if any(kind in left_out for kind, _, _ in chunks):
        data = _PNG_SIGNATURE + b"".join(data[start:end] for kind, start, end in chunks if kind not in left_out)
        chunks = list(_png_chunks(data))
    pixels = _to_colour(_opencv_decode(data, "PNG", height, width), pixel_format)
    if not pixel_format.oriented:
        return pixels
    exif = next((data[start + 8 : end - 4] for kind, start, end in chunks if kind == b"eXIf"), b"")
    return turn(pixels, exif_orientation(exif))


def _check_png_data(data: bytes, held: int) -> None:
    """Refuse more compressed data than the rows could need, which would be inflated to a thousand times as much."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    row = (width * depth * _PNG_SAMPLES.get(colour, 4) + 7) // 8 + 1
    allowed = 2 * height * row + _PNG_ROW_OVERHEAD_BYTES * height + _PNG_OVERHEAD_BYTES
    if held > allowed:
        raise BadImageError(
            f"PNG image of {height} x {width} pixels has {held} bytes of compressed data; allowed are at most {allowed}"
        )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's type, start and end.

    Raises `BadImageError` if one goes beyond the data, and if there are too many.

    OpenCV must not see such a chunk: it takes the memory that a chunk asks for, up to 4 GB, before it reads.
    """
    position = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if position + 12 > len(data):
            raise BadImageError(f"PNG image is damaged or cut short: no IEND in its {len(data)} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise BadImageError(f"PNG image is damaged or cut short: chunk {kind!r} ends at {end} of {len(data)} bytes")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise BadImageError(f"PNG image has more than {MAX_PARTS} chunks; at most that many are allowed")


def _decode_webp(data: bytes, pixel_format: _PixelFormat) -> NDArray[Any]:
    height, width = _webp_size(data)
    pixel_format.check_size(height, width)
    pixels = _to_colour(_opencv_decode(data, "WebP", height, width), pixel_format)
    return turn(pixels, webp_orientation(data)) if pixel_format.oriented else pixels


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if len(data) >= 30 and kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if len(data) >= 30 and kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if len(data) >= 25 and kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    raise BadImageError(f"WebP image is damaged or cut short: no header in its {len(data)} bytes")


def _decode_tiff(data: bytes, pixel_format: _PixelFormat) -> NDArray[Any]:
    from PIL import TiffImagePlugin

    try:
        # Not Image.open: its limit on pixels would come before ours.
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damaged bytes lead to
        raise BadImageError(f"TIFF image is damaged or cut short, or of a kind that cannot be read: {error}") from error
    pixel_format.check_size(image.height, image.width)
    tags = image.tag_v2
    pixel_format.check_size(_tiff_number(tags, _TILE_LENGTH, 1), _tiff_number(tags, _TILE_WIDTH, 1))
    orientation = _tiff_number(tags, _ORIENTATION, UPRIGHT)
    # Both readers apply the orientation by themselves.
    pixels = _tiff_samples(image, data, pixel_format)
    return pixels if pixel_format.oriented or not 1 <= orientation <= 8 else turn_back(pixels, orientation)


def _tiff_number(tags: Mapping[int, Any], tag: int, default: int) -> int:
    value = tags.get(tag, default)
    if isinstance(value, int):
        return value
    raise BadImageError(f"TIFF tag {tag} is {value!r}; allowed is one integer")


def _tiff_samples(image: TiffImageFile, data: bytes, pixel_format: _PixelFormat) -> NDArray[Any]:
    tags = image.tag_v2
    bits, formats = set(tags.get(_BITS_PER_SAMPLE, (1,))), set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
    photometric, samples = _tiff_number(tags, _PHOTOMETRIC, -1), _tiff_number(tags, _SAMPLES_PER_PIXEL, 1)
    if formats == {_UNSIGNED} and max(bits) <= 8:
        return _pillow_decode(image, pixel_format)
    # Pillow has no 16-bit colour; OpenCV misreads separate planes, and grey with alpha.
    interleaved = samples == 1 or _tiff_number(tags, _PLANAR, _INTERLEAVED) == _INTERLEAVED
    known = (samples == 1 and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)) or (
        samples in (3, 4) and photometric == _RGB
    )
    if formats == {_UNSIGNED} and bits == {16} and interleaved and known:
        _check_unique_tags(data)
        pixels = _opencv_decode(data, "TIFF", image.height, image.width)
        return _to_colour(~pixels if photometric == _WHITE_IS_ZERO else pixels, pixel_format)
    raise BadImageError(
        f"TIFF image has {samples} samples of {max(bits)} bits "
        f"(sample format {sorted(formats)}, photometric {photometric}); "
        "allowed are unsigned 8 bit, and unsigned 16 bit as grey or interleaved RGB or RGBA"
    )


def _check_unique_tags(data: bytes) -> None:
    """Refuse a tag given twice: Pillow, which told the size, reads the last, and OpenCV the first."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    start, length, entry = (8, "Q", 20) if big else (4, "H", 12)
    try:
        (directory,) = struct.unpack_from(order + ("Q" if big else "I"), data, start)
        (count,) = struct.unpack_from(order + length, data, directory)
        first = directory + struct.calcsize(order + length)
        tags = [struct.unpack_from(order + "H", data, first + entry * index)[0] for index in range(count)]
    except struct.error as error:
        raise BadImageError(f"TIFF image is damaged or cut short: {error}") from error
    if len(set(tags)) < count:
        raise BadImageError(f"TIFF image has {count} tags, of which some are the same: {tags}; allowed is one of each")


def _pillow_decode(image: TiffImageFile, pixel_format: _PixelFormat) -> NDArray[Any]:
    grey = image.mode in ("1", "L", "LA")
    try:
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except MemoryError:
        raise
    except Exception as error:
        raise BadImageError(f"TIFF image is damaged or cut short, or of a kind that cannot be read: {error}") from error
    return _to_colour(pixels if grey else pixels[..., ::-1], pixel_format)


def _opencv_decode(data: bytes, kind: str, height: int, width: int) -> NDArray[Any]:
    """Return what is stored, blue first: (H, W), (H, W, 3) or (H, W, 4) of 8 or 16 bits."""
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImageError(f"{kind} image of {height} x {width} pixels cannot be decoded: {error.err}") from error
    if pixels is None:
        raise BadImageError(f"{kind} image of {height} x {width} pixels is damaged or cut short")
    return pixels


def _to_colour(pixels: NDArray[Any], pixel_format: _PixelFormat) -> NDArray[Any]:
    """Turn grey, BGR or BGRA into (H, W, 3) RGB or (H, W, 1) grey, of the wanted dtype."""
    pixels = _to_dtype(pixels, pixel_format.dtype)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    code = _TO_COLOUR.get((channels, pixel_format.colour))
    converted: NDArray[Any] = pixels if code is None else cv2.cvtColor(pixels, code)
    return converted.reshape(*pixels.shape[:2], 3 if pixel_format.colour == "RGB" else 1)


def _to_dtype(pixels: NDArray[Any], dtype: Dtype) -> NDArray[Any]:
    if dtype == "UINT8":
        return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)
