"""Applies orientation to decoded pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import cv2

from segserve_common.image_file import UPRIGHT

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
