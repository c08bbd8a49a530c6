"""Sessions of ONNX Runtime or OpenVINO with few idle threads, bounded memory and without telemetry."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.errors import EngineError
from segserve_builder.memory import is_out_of_memory
from segserve_builder.steps.engine_cache import engine_folder
from segserve_builder.steps.inference import run
from segserve_builder.steps.openvino_session import OpenVinoSession
from segserve_builder.steps.step_options import NetOptions

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"
MUCH_SMALLER: Final = 16
"""Ratio of the largest earlier input to the current one above which memory is released."""


class NetworkSession:
    """Runs the network of a step's options; its outputs always have a batch."""

    def __init__(self, path: Path, options: NetOptions, *, shared: bool = False, gpu: int | None = None) -> None:
        """Load the file on the GPU of that number, or on the CPU.

        A `shared` session has the arena and threads of all such sessions of this process. Raises `EngineError` if the
        options' engine or the GPU cannot be used.
        """
        self._input, self._outputs = options.input, options.outputs
        self._batched = options.batched
        self._inference = tuple(step.stage for step in options.inference)
        self._layout, self._max_batch_size = options.layout, options.max_batch_size
        self._open: Callable[[], Any]
        if options.engine == "openvino":
            self._open = partial(OpenVinoSession, path, options.intra_op_threads)
        else:
            engines = engine_folder(options.artifact_sha256) if options.engine == "tensorrt" else None
            self._open = partial(open_session, path, options.intra_op_threads, shared=shared, gpu=gpu, engines=engines)
        self._session = self._open()
        (given,) = (tensor for tensor in self._session.get_inputs() if tensor.name == options.input)
        self._takes_batches = len(given.shape) > 3
        self._shrinking = _shrinking()
        self._arena = _SHARED_ARENA if shared else Arena()
        self._least_refused = math.inf

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for a batch of inputs; one image where the file's outputs have no batch.

        `batch` is shaped and typed as the network's input. Raises `MemoryError` if it needs more memory than this
        process may allocate.
        """
        if not self._inference:
            return self._run(batch)
        (name,) = self._outputs
        logits = run(batch, self._layout, lambda part: self._run(part)[name], self._inference, self._max_batch_size)
        return {name: logits}

    def _run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if batch.size >= self._least_refused:
            raise MemoryError(f"an input of {self._least_refused} values was too large before")
        given = batch if self._takes_batches else batch[0]
        is_much_smaller = self._arena.is_much_smaller(math.prod(batch.shape[1:]))
        results = self._results(given, self._shrinking if is_much_smaller else None)
        if results is None:
            # What runs of other sizes left of the memory is in pieces: an image must not depend on earlier ones.
            results = self._results_of_free_memory(given)
        if results is None:
            raise MemoryError(f"an input of {batch.size} values is too large")
        if not self._batched:
            results = [np.asarray(result)[None] for result in results]
        return dict(zip(self._outputs, results, strict=True))

    def _results_of_free_memory(self, given: NDArray[Any]) -> list[Any] | None:
        if self._arena is _SHARED_ARENA:
            # Other sessions keep the arena; a run gives back what is free of it, even if it fails. What they hold now
            # says nothing about a later image.
            return self._results(given, self._shrinking) or self._results(given, self._shrinking)
        self._reopen()
        results = self._results(given, None)
        if results is None:
            self._reopen()
            self._least_refused = given.size
        return results

    def _results(self, given: NDArray[Any], run_options: Any) -> list[Any] | None:
        """Return the outputs, or None if memory could not be allocated."""
        if self._session is None:
            self._session = self._open()
        try:
            results: list[Any] = self._session.run(list(self._outputs), {self._input: given}, run_options)
        except Exception as error:
            if is_out_of_memory(error):
                return None
            raise
        return results

    def _reopen(self) -> None:
        self._session, self._arena.largest = None, 0  # first, for the two together may be too large
        self._session = self._open()


@dataclass(slots=True)
class Arena:
    """The memory that ONNX Runtime keeps: the most that it ever needed, for the largest input.

    To give it back in each run would make runs of large images take half as long again, so that is done once they seem
    to be over.
    """

    largest: int = 0

    def is_much_smaller(self, size: int) -> bool:
        """Tell whether an input of this size should give memory back."""
        over = size * MUCH_SMALLER <= self.largest
        self.largest = size if over else max(self.largest, size)
        return over


_SHARED_ARENA: Final = Arena()


@cache
def share_sessions() -> None:
    """Prepare this process for shared sessions, before it opens any."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    ort.set_global_thread_pool_sizes(max(len(os.sched_getaffinity(0)), 1), 1)
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # It grows by what is asked for: by doubling, a process of many small networks would keep much more than it uses.
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _shrinking() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def open_session(
    path: Path, threads: int = 0, *, shared: bool = False, gpu: int | None = None, engines: Path | None = None
) -> Any:
    """Return ONNX Runtime's session of a file on the GPU of that number, or on the CPU.

    0 threads leaves their number to ONNX Runtime. A `shared` session has no arena and no threads of its own;
    `share_sessions` was called before. With a folder for `engines` TensorRT runs what it has kernels for, and CUDA the
    rest. Raises `EngineError` if the session cannot run there: ONNX Runtime itself would take the CPU.
    """
    # Its builds report what they run; what is served is nobody else's business. It reads this when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 0 if shared else 1
    # Idle threads that spin take the cores from the steps before and after this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for each shape ever seen, so images of many sizes would fill the memory.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if shared:
        options.use_per_session_threads = False
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list[Any] = [_CPU]
    if gpu is not None:
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries from pip's packages; a GPU build alone has it
        # By default each new shape is timed with all of cuDNN's algorithms while its first caller waits.
        cuda = {"device_id": gpu, "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        providers.insert(0, (_CUDA, cuda))
        if engines is not None:
            caches = {"trt_engine_cache_enable": True, "trt_timing_cache_enable": True}
            paths = {"trt_engine_cache_path": str(engines), "trt_timing_cache_path": str(engines)}
            providers.insert(0, (_TENSORRT, {"device_id": gpu, **caches, **paths}))
    elif engines is not None:
        raise EngineError("runtime.engine is tensorrt, but this server gives the network no GPU")
    first = providers[0] if gpu is None else providers[0][0]
    asked = "runtime.device is gpu" if engines is None else "runtime.engine is tensorrt"
    if first not in (known := onnxruntime.get_available_providers()):
        more = ", and TensorRT's libraries" if first == _TENSORRT else ""
        needs = f"it needs {first} (package onnxruntime-gpu in place of onnxruntime{more})"
        raise EngineError(f"{asked}, but this server's ONNX Runtime {onnxruntime.__version__} has {known}; {needs}")
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    # ONNX Runtime leaves a provider that does not start out, with a warning.
    if first not in (used := session.get_providers()):
        raise EngineError(f"{asked}, but {first} does not start on GPU {gpu}; what starts is {used}")
    return session
