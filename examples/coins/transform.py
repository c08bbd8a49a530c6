"""The transforms between a photograph and each network, as training and evaluation use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]

UNET_MULTIPLE = 16
YOLO_SIZE = 384
YOLO_PADDING = 114


def unet_input(grey: Bytes) -> Bytes:
    """Repeat a grey image's last row and column up to multiples of 16: (H, W) to uint8 (1, 1, H', W')."""
    height, width = grey.shape
    bottom, right = -height % UNET_MULTIPLE, -width % UNET_MULTIPLE
    return np.pad(grey, ((0, bottom), (0, right)), mode="edge")[None, None]


def yolo_input(grey: Bytes) -> Bytes:
    """Fit a grey image (H, W) into the middle of a 384 x 384 field of 114; gives uint8 (1, 1, 384, 384)."""
    height, width = grey.shape
    scale = YOLO_SIZE / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (YOLO_SIZE - inner_height) // 2, (YOLO_SIZE - inner_width) // 2
    field = np.full((1, 1, YOLO_SIZE, YOLO_SIZE), YOLO_PADDING, np.uint8)
    inner = grey
    if scale != 1:
        inner = cv2.resize(grey, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    field[0, 0, top : top + inner_height, left : left + inner_width] = inner
    return field
