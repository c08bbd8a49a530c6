"""ONNX Runtime sessions with few idle threads, bounded memory and without telemetry."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.memory import is_out_of_memory
from segserve_builder.steps.inference import run
from segserve_builder.steps.step_options import NetOptions

MUCH_SMALLER: Final = 16
"""Ratio of the largest earlier input to the current one above which memory is released."""


class NetworkSession:
    """Runs the network of a step's options; its outputs always have a batch."""

    def __init__(self, path: Path, options: NetOptions) -> None:
        """Load the file."""
        self._input, self._outputs = options.input, options.outputs
        self._batched = options.batched
        self._inference = tuple(step.stage for step in options.inference)
        self._layout, self._max_batch_size = options.layout, options.max_batch_size
        self._open = partial(open_session, path, options.intra_op_threads)
        self._session = self._open()
        (given,) = (tensor for tensor in self._session.get_inputs() if tensor.name == options.input)
        self._takes_batches = len(given.shape) > 3
        self._shrinking = _shrinking()
        self._largest = 0
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
        results = self._results(given, self._run_options(math.prod(batch.shape[1:])))
        if results is None:
            # What runs of other sizes left of the memory is in pieces: an image must not depend on earlier ones.
            self._reopen()
            results = self._results(given, None)
        if results is None:
            self._reopen()
            self._least_refused = batch.size
            raise MemoryError(f"an input of {batch.size} values is too large")
        if not self._batched:
            results = [np.asarray(result)[None] for result in results]
        return dict(zip(self._outputs, results, strict=True))

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
        self._session, self._largest = None, 0  # first, for the two together may be too large
        self._session = self._open()

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


def open_session(path: Path, threads: int = 0) -> Any:
    """Return ONNX Runtime's session of a file on the CPU; 0 threads leaves their number to it."""
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
