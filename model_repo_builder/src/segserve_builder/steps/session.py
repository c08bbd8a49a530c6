"""Sessions of ONNX Runtime or OpenVINO with few idle threads, bounded memory and without telemetry."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve_builder.cpus import available_cpus, cpu_limit
from segserve_builder.errors import BadImageError, EngineError
from segserve_builder.memory import allow_total, is_out_of_memory, process_bytes, total_allowed
from segserve_builder.steps.engine_cache import tensorrt_options
from segserve_builder.steps.inference import run
from segserve_builder.steps.openvino_session import OpenVinoSession
from segserve_builder.steps.step_options import NetOptions

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"
_TOO_NEW: Final = (
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        "IR version",
        "set ir_version with the package onnx, or export it with an older one",
    ),
    (
        r"Opset (\d+) is under development.* is till opset (\d+)",
        "opset",
        "export it with a lower opset_version, or convert it with onnx.version_converter",
    ),
)
"""What ONNX Runtime says of files that are newer than itself, the kind of version, and what mends it."""
MUCH_SMALLER: Final = 16
"""Ratio of the largest earlier input to the current one above which memory is released."""
_STACK_BYTES: Final = 8 * 2**20
_OPEN_BYTES: Final = 16 * 2**20


Inputs: TypeAlias = Sequence[NDArray[Any]]
"""Arrays of the image, or of a batch of images, and of the inputs beside it."""


class InputMemoryError(MemoryError):
    """An input is not smaller than one for which memory did not suffice when nothing else ran."""


class NetworkSession:
    """Runs the network of a step's options; its outputs always have a batch.

    If the options leave the number of threads open, an image alone has all of them, and of a batch with an image for
    each core each image has one: that takes less processor time. Images that are left over have all threads again.
    """

    def __init__(
        self, path: Path, options: NetOptions, *, shared: bool = False, gpu: int | None = None, apart: bool = True
    ) -> None:
        """Load the file on the GPU of that number, or on the CPU.

        If not `apart`, images of a batch have no core each. A `shared` session has the arena and threads of all such
        sessions of this process. Raises `EngineError` if the options' engine or the GPU cannot be used.
        """
        self._inputs, self._outputs = (options.input, *(options.extra or ())), options.outputs
        self._batched = options.batched
        self._inference = tuple(step.stage for step in options.inference)
        self._layout, self._max_batch_size = options.layout, options.max_batch_size
        self._open: Callable[[], Any]
        if options.engine == "openvino":
            self._open = partial(OpenVinoSession, path, options.intra_op_threads or cpu_limit() or 0)
        else:
            trt = tensorrt_options(options)
            self._open = partial(open_session, path, options.intra_op_threads, shared=shared, gpu=gpu, trt=trt)
        self._session = self._open()
        inputs = {tensor.name: tensor for tensor in self._session.get_inputs() if tensor.name in self._inputs}
        self._takes_batches = len(inputs[options.input].shape) > 3
        tensors = [*inputs.values(), *(each for each in self._session.get_outputs() if each.name in options.outputs)]
        has_batch = options.batched and self._takes_batches
        self._is_single = not has_batch or any(tuple(tensor.shape[:1]) == (1,) for tensor in tensors)
        apart = apart and options.runs_images_apart and gpu is None and not shared
        self._parallel = ParallelSession(path) if apart else None
        self._shrinking = _shrinking()
        self._arena = _SHARED_ARENA if shared else Arena()
        self._least_refused = math.inf
        self._opening = Lock()

    def run(self, batch: NDArray[Any], extra: Sequence[NDArray[Any]] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for a batch of inputs.

        `batch` is shaped and typed as the network's input, `extra` as those beside it, in the options' order. Raises
        `MemoryError` if it needs more memory than this process may allocate, and `BadImageError` if it has no images,
        or if its images' outputs differ in shape.
        """
        return self.run_each([(batch, *extra)])[0]

    def run_each(self, batches: Sequence[Inputs]) -> list[dict[str, NDArray[Any]]]:
        """Return the outputs of each of several batches, which are run together: their images have one shape.

        A batch has its images first, and then their inputs beside them. They and errors are as for `run`.
        """
        if not self._inference:
            answers = iter(self._answers([image for batch in batches for image in _images(batch)]))
            return [_joined(list(islice(answers, len(batch[0])))) for batch in batches]
        (name,) = self._outputs

        def call(part: NDArray[Any]) -> NDArray[Any]:
            return _joined(self._answers(_images([part])))[name]

        steps, most = self._inference, self._max_batch_size
        return [{name: run(batch, self._layout, call, steps, most)} for (batch,) in batches]

    def run_beside_others(self, image: NDArray[Any], extra: Sequence[NDArray[Any]] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for one image, as `run` does, while other threads do the same.

        Raises `MemoryError`, or another error that `is_out_of_memory`, as soon as memory does not suffice beside the
        others.
        """
        is_much_smaller = self._arena.is_much_smaller(math.prod(image.shape[1:]))
        with self._opening:
            session = self._session = self._session or self._open()
        options = self._shrinking if is_much_smaller else None
        return self._named(session.run(list(self._outputs), self._feed((image, *extra)), options))

    def check_size(self, batch: NDArray[Any]) -> None:
        """Raise `InputMemoryError` if an input is not smaller than one that was refused when nothing else ran."""
        if batch.size >= self._least_refused:
            raise InputMemoryError(f"an input of {self._least_refused} values was too large before")

    def close(self) -> None:
        """Give all memory back until the next run."""
        self._session, self._arena.largest = None, 0
        if self._parallel is not None:
            self._parallel.close()

    def feeds(self, batch: NDArray[Any], extra: Sequence[NDArray[Any]] = ()) -> list[dict[str, NDArray[Any]]]:
        """Return the inputs that the file gets for a batch, one for each image, or for each of their views or tiles.

        Inputs and errors are as for `run`.
        """
        given: list[Inputs] = [] if self._inference else _images((batch, *extra))

        def call(part: NDArray[Any]) -> NDArray[Any]:
            given.extend(_images([part]))
            return _joined(self._answers(_images([part])))[self._outputs[0]]

        if self._inference:
            run(batch, self._layout, call, self._inference, self._max_batch_size)
        return [self._feed(image) for image in given]

    def _answers(self, images: Sequence[Inputs]) -> list[dict[str, NDArray[Any]]]:
        """Return the outputs of each image; inputs and outputs have a batch of one."""
        count = self._parallel.share(len(images), is_single=self._is_single) if self._parallel else 0
        answers: list[dict[str, NDArray[Any]]] = []
        if self._parallel and count:
            feeds = [self._feed(image) for image in images[:count]]
            answers += map(self._named, self._parallel.run(self._outputs, feeds))
        rest = images[len(answers) :]
        size = 1 if self._is_single else max(len(rest), 1)
        for start in range(0, len(rest), size):
            part = rest[start : start + size]
            given = part[0] if len(part) == 1 else [np.concatenate(arrays) for arrays in zip(*part, strict=True)]
            outputs = self._run(given, is_alone=len(part) == len(images))
            for place in range(len(part)):
                answers.append({name: array[place : place + 1] for name, array in outputs.items()})
        return answers

    def _run(self, inputs: Inputs, *, is_alone: bool) -> dict[str, NDArray[Any]]:
        """Return the outputs of a batch; if it `is_alone`, no outputs of others take memory."""
        batch, given = inputs[0], self._feed(inputs)
        self.check_size(batch)
        is_much_smaller = self._arena.is_much_smaller(math.prod(batch.shape[1:]))
        results = self._results(given, self._shrinking if is_much_smaller else None)
        if results is None:
            # What runs of other sizes left of the memory is in pieces: an image must not depend on earlier ones.
            results = self._results_of_free_memory(given, is_alone=is_alone)
        if results is None:
            raise MemoryError(f"an input of {batch.size} values is too large")
        if self._parallel is not None:
            self._parallel.observe(_size(given) // len(batch), len(batch))
        return self._named(results)

    def _feed(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        image, *extra = inputs
        arrays = (image if self._takes_batches else image[0], *extra)
        return dict(zip(self._inputs, arrays, strict=True))

    def _named(self, results: Sequence[Any]) -> dict[str, NDArray[Any]]:
        arrays = results if self._batched else [np.asarray(result)[None] for result in results]
        return dict(zip(self._outputs, arrays, strict=True))

    def _results_of_free_memory(self, given: Mapping[str, NDArray[Any]], *, is_alone: bool) -> list[Any] | None:
        if self._arena is _SHARED_ARENA:
            # Other sessions keep the arena; a run gives back what is free of it, even if it fails. What they hold now
            # says nothing about a later image.
            return self._results(given, self._shrinking) or self._results(given, self._shrinking)
        self._reopen()
        results = self._results(given, None)
        if results is None:
            self._reopen()
            self._least_refused = given[self._inputs[0]].size if is_alone else self._least_refused
        return results

    def _results(self, given: Mapping[str, NDArray[Any]], run_options: Any) -> list[Any] | None:
        """Return the outputs, or None if memory could not be allocated."""
        if self._session is None:
            self._session = self._open()
        try:
            results: list[Any] = self._session.run(list(self._outputs), given, run_options)
        except Exception as error:
            if is_out_of_memory(error):
                return None
            raise
        return results

    def _reopen(self) -> None:
        self.close()  # first, for the two together may be too large
        self._session = self._open()


@dataclass(slots=True)
class Arena:
    """The memory that ONNX Runtime keeps: the most that it ever needed, for the largest input.

    To give it back in each run would make runs of large images take half as long again, so that is done once they seem
    to be over.
    """

    largest: int = 0

    def is_much_smaller(self, size: int) -> bool:
        """Return whether an input of this size should give memory back."""
        over = size * MUCH_SMALLER <= self.largest
        self.largest = size if over else max(self.largest, size)
        return over


_SHARED_ARENA: Final = Arena()


class ParallelSession:
    """A second session of a file on the CPU that runs several images at the same time, each on one thread.

    It is opened when it is first needed, since it holds the weights once more.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._cores = path, available_cpus()
        self._session: Any = None
        self._threads = ThreadPoolExecutor(self._cores, "image")
        self._arena, self._shrinking = Arena(), _shrinking()
        self._allowance = WeightsAllowance(path, self._cores * _STACK_BYTES)
        self._loaded_bytes = process_bytes("VmData")
        self._largest, self._needed_bytes = 0, 0
        self._least_refused = math.inf

    def share(self, images: int, *, is_single: bool) -> int:
        """Return how many images of a batch to run here: those that keep all cores busy.

        Half of the cores are enough if the file `is_single`: the alternative is one image after the other.
        """
        if self._cores == 1:
            return 0
        rest = images % self._cores
        return images if is_single and rest > 1 and 2 * rest >= self._cores else images - rest

    def observe(self, size: int, images: int) -> None:
        """Learn what memory an image of this size takes at most, from a run of the other session that has ended."""
        if size > self._largest:
            self._largest = size
            self._needed_bytes = (process_bytes("VmData") - self._loaded_bytes) // images

    def run(self, outputs: Sequence[str], feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[list[Any]]:
        """Return the outputs for each feed, an image; nothing if memory does not suffice for all at the same time.

        Arrays are shaped and typed as the file's inputs and outputs, and all feeds alike.
        """
        size = _size(feeds[0])
        if size > self._largest or size >= self._least_refused:
            return []
        room_bytes = total_allowed() - process_bytes("VmData")
        # Not by trial: what ONNX Runtime has allocated when it fails is not all given back.
        if size > self._arena.largest and total_allowed() >= 0 and room_bytes < self._cores * self._needed_bytes:
            return []
        runs: list[Future[list[Any]]] = []
        errors: list[BaseException] = []
        try:
            session = self._session = self._session or self._opened()
            options = self._shrinking if self._arena.is_much_smaller(size) else None
            for feed in feeds:
                runs.append(self._threads.submit(session.run, list(outputs), feed, options))  # noqa: PERF401
        except Exception as error:
            errors = [error]
        wait(runs)
        # Not by `result()`: the traceback of an error that is raised here would keep the session from being freed.
        errors += [raised for run in runs if (raised := run.exception()) is not None]
        if not errors:
            return [run.result() for run in runs]
        if not all(map(is_out_of_memory, errors)):
            raise errors[0]
        # What cannot be opened is not opened again for a smaller image.
        self._least_refused = size if self._session is not None else 0
        self.close()
        return []

    def close(self) -> None:
        """Give all memory back until the next run."""
        self._session, self._arena.largest = None, 0

    def _opened(self) -> Any:
        with self._allowance.given():
            return open_session(self._path, 1)


class WeightsAllowance:
    """Memory that this process may have beside its limit to open a file: weights are not the requests' memory.

    Nor are the stacks of threads. It is given once, however often the file is opened.
    """

    def __init__(self, path: Path, stacks_bytes: int = 0) -> None:
        self._path, self._stacks_bytes = path, stacks_bytes
        self._is_given = False

    @contextmanager
    def given(self) -> Iterator[None]:
        """Open the file in the context. If it raises, the limit is as before."""
        limit_bytes = total_allowed()
        if self._is_given or limit_bytes < 0:
            yield
            return
        before, most_bytes = process_bytes("VmData"), 3 * self._path.stat().st_size
        allow_total(limit_bytes + most_bytes + self._stacks_bytes)
        allowed_bytes = limit_bytes
        try:
            yield
            # Requests beside it may have taken some.
            grown_bytes = min(max(process_bytes("VmData") - before, 0), most_bytes + _OPEN_BYTES)
            allowed_bytes += grown_bytes + self._stacks_bytes
            self._is_given = True
        finally:
            allow_total(allowed_bytes)


def _images(batch: Inputs) -> list[Inputs]:
    return [[array[place : place + 1] for array in batch] for place in range(len(batch[0]))]


def _size(feed: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.size for array in feed.values())


def _joined(answers: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of one batch from its images'; raises `BadImageError` if they have no common shape."""
    if len(answers) == 1:
        return answers[0]
    if not answers:
        raise BadImageError("the batch has no images; send at least one")
    try:
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    except ValueError as error:
        shapes = ", ".join(str([list(array.shape) for array in answer.values()]) for answer in answers)
        raise BadImageError(
            f"this network's outputs differ in shape by image ({shapes}): send one image a request"
        ) from error


@cache
def share_sessions() -> None:
    """Prepare this process for shared sessions, before it opens any."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    ort.set_global_thread_pool_sizes(available_cpus(), 1)
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # It grows by what is requested: by doubling, a process of many small networks would keep much more than it uses.
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _shrinking() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def open_session(
    path: Path, threads: int = 0, *, shared: bool = False, gpu: int | None = None, trt: Mapping[str, Any] | None = None
) -> Any:
    """Return ONNX Runtime's session of a file on the GPU of that number, or on the CPU.

    0 threads means the container's limit, or else what ONNX Runtime takes of the machine. A `shared` session has
    no arena and no threads of its own; `share_sessions` was called before. With `trt`, its options, TensorRT runs
    what it has kernels for, and CUDA the rest. Raises `EngineError` if the session cannot run there (ONNX Runtime
    itself would take the CPU), and for a file that is newer than ONNX Runtime.
    """
    # Its builds report what they run; what is served is private. It reads this when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_limit() or 0
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
            onnxruntime.preload_dlls()  # CUDA's libraries from pip's packages; only a GPU build has it
        # By default each new shape is timed with all of cuDNN's algorithms while its first caller waits.
        cuda = {"device_id": gpu, "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        providers.insert(0, (_CUDA, cuda))
        if trt is not None:
            providers.insert(0, (_TENSORRT, {"device_id": gpu, **trt}))
    elif trt is not None:
        raise EngineError("runtime.engine is tensorrt, but this server gives the network no GPU")
    first = providers[0] if gpu is None else providers[0][0]
    asked = "runtime.device is gpu" if trt is None else "runtime.engine is tensorrt"
    if first not in (known := onnxruntime.get_available_providers()):
        more = ", and TensorRT's libraries" if first == _TENSORRT else ""
        needs = f"it needs {first} (package onnxruntime-gpu in place of onnxruntime{more})"
        raise EngineError(f"{asked}, but this server's ONNX Runtime {onnxruntime.__version__} has {known}; {needs}")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        for pattern, what, mend in _TOO_NEW:
            if found := re.search(pattern, str(error), re.DOTALL):
                raise EngineError(
                    f"{path.name} has the {what} {found[1]}; ONNX Runtime {onnxruntime.__version__} runs up to "
                    f"{found[2]}: {mend}"
                ) from None
        raise
    # ONNX Runtime leaves a provider that does not start out, with a warning.
    if first not in (used := session.get_providers()):
        raise EngineError(f"{asked}, but {first} does not start on GPU {gpu}; what starts is {used}")
    return session
