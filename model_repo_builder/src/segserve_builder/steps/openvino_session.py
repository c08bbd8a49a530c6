"""OpenVINO with the interface of ONNX Runtime's sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.errors import BadImageError, EngineError

REQUIREMENT: Final = "openvino==2026.4.1"
"""Installed where a model needs it, without its dependencies: numpy is there, the other one is telemetry."""

_ON_CPU: Final[Mapping[str, Any]] = {
    # On a processor with BF16 the default is BF16, whose answers differ.
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    # Each step is a process: pinned ones would all have the first cores.
    "ENABLE_CPU_PINNING": False,
}


@dataclass(frozen=True, slots=True)
class OpenVinoTensor:
    """An input or output of a network: its name, and its shape with a text for each free dimension."""

    name: str
    shape: tuple[int | str, ...]


class OpenVinoSession:
    """A network that OpenVINO runs on the CPU, one image or batch at a time."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Compile the file; 0 threads leaves their number to OpenVINO.

        Raises `EngineError` where OpenVINO is not installed, or cannot run the file.
        """
        openvino = _openvino()
        settings = {**_ON_CPU, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {openvino.__version__} cannot run {path.name}: {_last(error)}") from error
        self._request, self._tensor = self._compiled.create_infer_request(), openvino.Tensor
        # Its passes give a tensor further names.
        self._inputs = {name: each for each in self._compiled.inputs for name in each.names}

    def get_inputs(self) -> list[OpenVinoTensor]:
        """Return the network's inputs, one that has several names once for each."""
        return _tensors(self._compiled.inputs)

    def get_outputs(self) -> list[OpenVinoTensor]:
        """Return the network's outputs, one that has several names once for each."""
        return _tensors(self._compiled.outputs)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], run_options: Any = None) -> list[Any]:
        """Return the outputs of these names, in order; with `run_options` memory is given back afterwards.

        Raises `BadImageError` for an input of another type or shape than the file's, and OpenVINO's `RuntimeError`.
        """
        for name, array in feeds.items():
            self._check(name, array)
            self._request.set_tensor(name, self._tensor(np.ascontiguousarray(array), shared_memory=True))
        try:
            # Its `infer` returns the former run's outputs if memory cannot be allocated; `wait` raises.
            self._request.start_async()
            self._request.wait()
            # A copy: the next run overwrites the request's own outputs.
            return [np.array(self._request.get_tensor(name).data) for name in outputs]
        finally:
            if run_options is not None:
                self._compiled.release_memory()

    def _check(self, name: str, array: NDArray[Any]) -> None:
        declared = self._inputs[name]
        dtype, shape = declared.element_type.to_dtype(), declared.partial_shape
        fits = len(shape) == array.ndim and all(
            side.is_dynamic or side.get_length() == size for side, size in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            raise BadImageError(
                f"the input {name!r} is {array.dtype} of shape {list(array.shape)}; expected {dtype} of shape {shape}"
            )


def _tensors(ports: Iterable[Any]) -> list[OpenVinoTensor]:
    return [
        OpenVinoTensor(name, tuple(str(side) if side.is_dynamic else side.get_length() for side in each.partial_shape))
        for each in ports
        for name in each.names
    ]


@cache
def _openvino() -> Any:
    try:
        return import_module("openvino")
    except ImportError as error:
        raise EngineError(
            f"runtime.engine is openvino, but this server's Python has no package openvino ({error}). On this machine "
            "`segserve up` and `segserve apply` install it; the image of a cluster's servers needs "
            f"`pip install --no-deps {REQUIREMENT}`"
        ) from error


def _last(error: RuntimeError) -> str:
    """Return the end of OpenVINO's message, which begins with the lines of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-2:])[:400] or type(error).__name__
