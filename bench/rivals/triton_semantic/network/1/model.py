"""The network in ONNX Runtime, one run for a batch: for a Triton without the backend of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from bench.rivals.session import session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._network = session(Path(args["model_repository"]) / args["model_version"] / "model.onnx", 1)

    def execute(self, requests: list[Any]) -> list[Any]:
        tensors = [triton.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        (logits,) = self._network(np.concatenate(tensors))
        parts = np.split(logits, np.cumsum([len(tensor) for tensor in tensors])[:-1])
        return [triton.InferenceResponse([triton.Tensor("logits", part)]) for part in parts]
