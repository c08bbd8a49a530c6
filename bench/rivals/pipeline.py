"""YOLO segmentation around a network, with Ultralytics' own functions, OpenCV and pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask
from ultralytics.data.augment import LetterBox
from ultralytics.utils import nms, ops


def prepare(jpeg: bytes, *, is_dynamic: bool = False) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return the network's input, 0 to 1, and the image's height and width.

    It is (1, 3, 640, 640), or less high or wide for a dynamic export, as Ultralytics prepares images for these.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    boxed = LetterBox((640, 640), auto=is_dynamic)(image=image)
    tensor = np.ascontiguousarray(boxed[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255
    return tensor, image.shape[:2]


def masks(outputs: Sequence[NDArray[Any]], size: tuple[int, int]) -> list[bytes]:
    """Return the masks of an image in its size, as RLE, out of detections and prototypes: NMS, masks, encode."""
    with torch.inference_mode():
        detections, prototypes = map(torch.from_numpy, outputs)
        (found,) = nms.non_max_suppression(detections, 0.25, 0.7, nc=80)
        given = [4 * each for each in prototypes.shape[2:]]
        found[:, :4] = ops.scale_boxes(given, found[:, :4], size)
        bitmaps = ops.process_mask_native(prototypes[0], found[:, 6:], found[:, :4], size)
    return encode(bitmaps.numpy())


def encode(bitmaps: NDArray[Any]) -> list[bytes]:
    """Return bitmaps (N, H, W) as RLE."""
    return [each["counts"] for each in mask.encode(np.asfortranarray(bitmaps.astype(np.uint8).transpose(1, 2, 0)))]
