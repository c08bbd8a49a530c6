"""Reads the EXIF orientation of encoded images, and applies it to decoded pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import cv2

if TYPE_CHECKING:
    from numpy.typing import NDArray

UPRIGHT: Final = 1
_INVERSE: Final = {6: 8, 8: 6}  # the other six undo themselves
_ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation 1..8 of a JPEG file, 1 if it has none or a broken one."""
    for marker, body in _jpeg_segments(data):
        if marker == 0xE1 and body[:6] == b"Exif\0\0":
            return exif_orientation(body[6:])
    return UPRIGHT


def webp_orientation(data: bytes) -> int:
    """Return the orientation 1..8 of a WebP file, 1 if it has none or a broken one."""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return exif_orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return UPRIGHT


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


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each marker before the scan, with its body."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)
