"""The step `net` inside Triton: runs the network over the requests of a batch."""

from __future__ import annotations

from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segserve_builder.backend.batch_spans import batch_spans
from segserve_builder.backend.responses import error_response, input_array, response
from segserve_builder.errors import BadImageError, ImageMemoryError
from segserve_builder.memory import is_out_of_memory, keep_freed_memory, limit_allocations
from segserve_builder.steps.inference import Layout
from segserve_builder.steps.session import Inputs, NetworkSession
from segserve_builder.steps.step_options import MODEL_FILE, NetOptions


class TritonPythonModel:
    """Runs the ONNX file beside the step's code; a `shared` one is a member of a shared step."""

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network."""
        keep_freed_memory()
        self._options = NetOptions.from_model_config(args["model_config"])
        self._inputs = (self._options.input, *(self._options.extra or ()))
        folder = Path(args["model_repository"]) / args["model_version"]
        gpu = int(args["model_instance_device_id"]) if args.get("model_instance_kind") == "GPU" else None
        self._session = NetworkSession(folder / MODEL_FILE, self._options, shared=self._shared, gpu=gpu)
        if self._options.inference:
            # Loads its kernels now: a proof reaches one instance only, the others' first requests are callers'.
            import_module("segserve_builder.steps.tiling")
        self._limit_bytes = limit_allocations()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        given = [(request.request_id(), self._present(request)) for request in requests]
        responses: list[Any] = []
        with batch_spans(requests, sum(len(arrays[0]) for _, arrays in given if arrays)):
            for _, group in groupby(given, key=lambda each: [array.shape[1:] for array in each[1]]):
                responses += self._answer_together(list(group))
        return responses

    def _present(self, request: Any) -> Inputs:
        found = (input_array(request, name) for name in self._inputs)
        return [array for array in found if array is not None]

    def _answer_together(self, given: list[tuple[str, Inputs]]) -> list[Any]:
        present = [arrays for _, arrays in given if len(arrays) == len(self._inputs)]
        if len(present) == len(given):
            try:
                return [response(outputs) for outputs in self._session.run_each(present)]
            except Exception as error:
                if len(given) == 1:
                    return [error_response(self._blamed(error, present[0][0]), given[0][0])]
        # One of them may have made the others fail, so each is run by itself.
        return [self._answer_alone(*each) for each in given]

    def _answer_alone(self, request_id: str, arrays: Inputs) -> Any:
        if len(arrays) < len(self._inputs):
            names = ", ".join(map(repr, self._inputs))
            return error_response(BadImageError(f"an input is missing; the network takes {names}"))
        return self._answer_together([(request_id, arrays)])[0]

    def _blamed(self, error: Exception, given: NDArray[Any]) -> Exception:
        """Return `error` as the caller's fault if the input is too large, or of a shape or type that is not allowed."""
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        if is_out_of_memory(error):
            return ImageMemoryError(described_input(given, self._options.layout), self._limit_bytes)
        return BadImageError(str(error)) if isinstance(error, InvalidArgument) else error


def described_input(given: NDArray[Any], layout: Layout) -> str:
    """Name a network's input by its size."""
    rows = 2 if layout == "NCHW" else 1
    height, width = given.shape[rows : rows + 2]
    return f"the network's input of {height} x {width} pixels"
