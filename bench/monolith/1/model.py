"""The hand-written alternative: decoding, U-Net, post-processing and encoding in one Python model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton
from pycocotools import mask as coco

MIN_AREA = 150


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        encoded = triton.get_input_tensor_by_name(request, "IMAGE").as_numpy()[0]
        grey = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
        height, width = grey.shape
        padded = cv2.copyMakeBorder(grey, 0, -height % 16, 0, -width % 16, cv2.BORDER_REPLICATE)
        (logits,) = self._session.run(["logits"], {"image": padded[None, None]})
        coin = without_small_regions((logits[0, 0, :height, :width] > 0).astype(np.uint8))
        masks = np.asfortranarray(np.stack([1 - coin, coin], axis=2))
        area = int(coin.sum())
        outputs = {
            "SIZE": np.array([height, width], np.int32),
            "MASKS": np.array([rle["counts"] for rle in coco.encode(masks)], np.object_),
            "CLASSES": np.array([0, 1], np.int32),
            "AREAS": np.array([height * width - area, area], np.int64),
        }
        return triton.InferenceResponse([triton.Tensor(name, array) for name, array in outputs.items()])


def without_small_regions(mask: np.ndarray) -> np.ndarray:
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    is_kept = statistics[:, cv2.CC_STAT_AREA] >= MIN_AREA
    is_kept[0] = False
    return is_kept.astype(np.uint8)[regions]
