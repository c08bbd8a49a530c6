"""Semantic segmentation around a network, with OpenCV and numpy."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(1)  # Ultralytics does so for its own


def prepare(jpeg: bytes) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return the network's input (1, 3, 512, 512), 0 to 1, and the image's height and width."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    stretched = cv2.resize(image, (512, 512))
    return np.ascontiguousarray(stretched[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255, image.shape[:2]


def label_map(logits: NDArray[np.float32], size: tuple[int, int]) -> bytes:
    """Return the most probable class of each pixel of an image as PNG, out of logits (classes, h, w)."""
    labels = cv2.resize(logits.transpose(1, 2, 0), size[::-1]).argmax(2)
    return cv2.imencode(".png", labels.astype(np.uint8))[1].tobytes()
