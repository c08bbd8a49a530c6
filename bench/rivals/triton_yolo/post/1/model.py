"""Suppresses boxes, decodes and encodes masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as triton

from bench.rivals.pipeline import masks


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        names = ("DETECTIONS", "PROTOTYPES", "SIZE")
        *outputs, size = (triton.get_input_tensor_by_name(request, name).as_numpy() for name in names)
        found = np.array(masks(outputs, tuple(size.tolist())), np.object_)
        return triton.InferenceResponse([triton.Tensor("MASKS", found)])
