"""Reads the EXIF orientation of encoded images, and applies it to decoded pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import cv2

from segserve_builder.errors import BadImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UPRIGHT: Final = 1
MAX_PARTS: Final = 2**16
"""Most segments or chunks of a file. A photograph has a handful, the largest PNG one for every 4 or 8 KiB."""
START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
_WITHOUT_LENGTH: Final = frozenset({0x01, 0xD8})
# A marker after any number of fill bytes; a scan's data contains 0xFF only before 0 and as one of eight markers.
_MARKER: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_INVERSE: Final = {6: 8, 8: 6}  # the other six undo themselves
_ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation 1..8 of a JPEG file, 1 if it has none or a broken one.

    Raises `BadImageError` if it has too many segments.
    """
    for marker, start, end in jpeg_segments(data):
        if marker == START_OF_SCAN:
            break
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            return exif_orientation(data[start + 6 : end])
    return UPRIGHT


def webp_orientation(data: bytes) -> int:
    """Return the orientation 1..8 of a WebP file, 1 if it has none or a broken one.

    Raises `BadImageError` if it has too many chunks.
    """
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return UPRIGHT
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return exif_orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    raise BadImageError(f"WebP image has more than {MAX_PARTS} chunks; at most that many are allowed")


def exif_orientation(exif: bytes) -> int:
    """Return the orientation 1..8 in an EXIF block (a TIFF header and directory), 1 if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    except struct.error:
        # A broken EXIF block does not make the picture bad; Pillow and OpenCV read on, too.
        return UPRIGHT
    return UPRIGHT


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


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment up to the end of the image, and where its body starts and ends.

    Raises `BadImageError` if there are too many.
    """
    position = 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None or found[1][0] == _END_OF_IMAGE:
            return
        marker, start = found[1][0], found.end() + 2
        if marker in _WITHOUT_LENGTH:
            position = found.end()
            continue
        position = found.end() + max(int.from_bytes(data[start - 2 : start], "big"), 2)
        yield marker, start, position
    raise BadImageError(f"JPEG image has more than {MAX_PARTS} segments; at most that many are allowed")
