"""The step `net` inside Triton: one run of the network over the requests that Triton has batched."""

from __future__ import annotations

import math
import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segserve_builder.backend.responses import error_response, input_array, response
from segserve_builder.errors import BadImageError
from segserve_builder.step_options import MODEL_FILE, NetOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# How many times smaller than the largest before it an image is that makes memory be given back.
MUCH_SMALLER: Final = 16


class TritonPythonModel:
    """Runs the ONNX file beside the step's code with ONNX Runtime."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network."""
        self._options = NetOptions.from_model_config(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._session = _session(folder / MODEL_FILE, self._options.intra_op_threads)
        self._shrinking = _shrinking()
        self._largest = 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response a request, in order."""
        arrays = [input_array(request, self._options.input) for request in requests]
        responses: list[Any] = []
        for _, group in groupby(arrays, key=lambda array: None if array is None else array.shape[1:]):
            responses += self._answer_together(list(group))
        return responses

    def _answer_together(self, arrays: list[NDArray[Any] | None]) -> list[Any]:
        given = [array for array in arrays if array is not None]
        if len(given) == len(arrays):
            try:
                return [response(outputs) for outputs in self._run(given)]
            except Exception as error:
                if len(arrays) == 1:
                    return [error_response(_blamed(error))]
        # One of them may have failed the others: each is tried by itself.
        return [self._answer_alone(array) for array in arrays]

    def _answer_alone(self, array: NDArray[Any] | None) -> Any:
        if array is None:
            return error_response(BadImageError(f"the input {self._options.input!r} is missing"))
        return self._answer_together([array])[0]

    def _run(self, arrays: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
        batch = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        run_options = self._run_options(math.prod(batch.shape[1:]))
        results = self._session.run(list(self._options.outputs), {self._options.input: batch}, run_options)
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        split = [np.split(result, ends) for result in results]
        return [dict(zip(self._options.outputs, parts, strict=True)) for parts in zip(*split, strict=True)]

    def _run_options(self, image_size: int) -> Any:
        # ONNX Runtime keeps the most memory that it ever needed. To give it back in each run would make runs of
        # large images take half as long again, so that is done once they seem to be over.
        if image_size * MUCH_SMALLER > self._largest:
            self._largest = max(self._largest, image_size)
            return None
        self._largest = image_size
        return self._shrinking


def _shrinking() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _session(path: Path, threads: int) -> Any:
    # Its builds report what they run; what is served is nobody else's business. It reads this when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin take the cores from the steps before and after this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for each shape ever seen, so images of many sizes would fill the memory.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _blamed(error: Exception) -> Exception:
    """Return `error` as the caller's where ONNX Runtime says that the given tensor does not fit."""
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    return BadImageError(str(error)) if isinstance(error, InvalidArgument) else error
