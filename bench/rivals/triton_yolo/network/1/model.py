"""The network in ONNX Runtime: for a Triton without the backend of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton

from bench.rivals.session import session


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._network = session(Path(args["model_repository"]) / args["model_version"] / "model.onnx", 1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        outputs = self._network(triton.get_input_tensor_by_name(request, "images").as_numpy())
        return triton.InferenceResponse([triton.Tensor(f"output{at}", each) for at, each in enumerate(outputs)])
