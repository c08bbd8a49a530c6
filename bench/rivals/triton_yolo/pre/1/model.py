"""Decodes, letterboxes and normalises an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from bench.rivals.pipeline import prepare


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensor, size = prepare(triton.get_input_tensor_by_name(request, "IMAGE").as_numpy()[0])
        return triton.InferenceResponse([triton.Tensor("TENSOR", tensor), triton.Tensor("SIZE", np.int32(size))])
