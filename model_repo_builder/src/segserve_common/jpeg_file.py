"""Decodes JPEG files as servers do: with libjpeg, which refuses a scan that ends early. Needs simplejpeg."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, TypeAlias

import simplejpeg
from numpy.typing import NDArray

from segserve_common.image_file import END_OF_JPEG, START_OF_SCAN, ImageFileError, check_size, jpeg_segments

Colour: TypeAlias = Literal["RGB", "GREY"]

# A scan of a progressive JPEG goes over all pixels, however short it is; encoders write about 10.
_MAX_SCANS: Final = 32
# libjpeg's warnings of files in which no pixel need be missing.
_HARMLESS: Final = re.compile("extraneous bytes|JFIF revision|Premature end of JPEG file")
_BEFORE_END: Final = re.compile("extraneous bytes before marker 0xd9")


def decode_jpeg(data: bytes, colour: Colour, max_pixels: int) -> NDArray[Any]:
    """Return the stored pixels of a JPEG, uint8 (H, W, C): C is 3 for RGB, 1 for GREY. EXIF orientation is not applied.

    Raises `ImageFileError` for more than `max_pixels` pixels, and for data that is damaged or cut short.
    """
    colourspace = "RGB" if colour == "RGB" else "GRAY"
    try:
        _check_scans(data)
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        check_size(height, width, max_pixels)
        try:
            pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colourspace, strict=True)
        except ValueError as error:
            if not _HARMLESS.search(str(error)):
                raise
            pixels = _decode_warned(data, colourspace)
    except ImageFileError:
        raise
    except KeyError as error:  # simplejpeg's, of a header without a known subsampling
        raise ImageFileError("JPEG image is damaged or cut short: its header is not complete") from error
    except ValueError as error:
        raise ImageFileError(f"JPEG image is damaged or cut short: {error}") from error
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
        raise ImageFileError(f"JPEG image has {scans} scans; allowed are at most {_MAX_SCANS}")
