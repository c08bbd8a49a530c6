"""YOLO segmentation with ONNX Runtime and Ultralytics' own functions, OpenCV and pycocotools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from pycocotools import mask

from bench.rivals import operators  # noqa: F401  before what imports torchvision

# isort: split
from ultralytics.data.augment import LetterBox
from ultralytics.utils import nms, ops

Network = Callable[[NDArray[Any]], list[NDArray[Any]]]
"""Returns detections and prototypes for a tensor (1, 3, 640, 640)."""


def session(path: Path, threads: int) -> Network:
    """Return the network in this process; 0 threads are all. Those that wait do not spin: others need the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = opened.get_inputs()
    return lambda tensor: opened.run(None, {given.name: tensor})


def masks(jpeg: bytes, network: Network) -> list[bytes]:
    """Return the masks of an encoded image in its size, as RLE: decode, letterbox, network, NMS, masks, encode."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    boxed = LetterBox((640, 640))(image=image)
    tensor = np.ascontiguousarray(boxed[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255
    with torch.inference_mode():
        detections, prototypes = map(torch.from_numpy, network(tensor))
        (found,) = nms.non_max_suppression(detections, 0.25, 0.7, nc=80)
        found[:, :4] = ops.scale_boxes(tensor.shape[2:], found[:, :4], image.shape)
        bitmaps = ops.process_mask_native(prototypes[0], found[:, 6:], found[:, :4], image.shape[:2])
    columns = np.asfortranarray(bitmaps.numpy().astype(np.uint8).transpose(1, 2, 0))
    return [each["counts"] for each in mask.encode(columns)]
