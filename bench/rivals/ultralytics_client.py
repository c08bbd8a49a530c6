"""Ultralytics' own client of a Triton: it prepares images, suppresses boxes and decodes masks in this process."""

from __future__ import annotations

import cv2
import numpy as np
from ultralytics import YOLO

from bench.rivals.pipeline import encode


def connect(address: str) -> YOLO:
    """Return the model `network` of the Triton at this gRPC address; one for each thread."""
    return YOLO(f"grpc://{address}/network", task="segment")


def masks(jpeg: bytes, model: YOLO) -> list[bytes]:
    """Return the masks of an encoded image in its size, as RLE."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    (result,) = model.predict(image, imgsz=640, conf=0.25, iou=0.7, retina_masks=True, verbose=False)
    return encode(result.masks.data.numpy()) if result.masks else []
