"""All steps of a model in one process, for several images beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from segserve_builder.backend import post, pre
from segserve_builder.backend.batch_spans import spans
from segserve_builder.backend.net import described_input
from segserve_builder.backend.responses import SentRequest, StepFailure, failure_of, parameters_of
from segserve_builder.errors import BadImageError, ImageMemoryError
from segserve_builder.memory import is_out_of_memory, limit_allocations, return_freed_memory
from segserve_builder.steps.image_session import ImageSession, Place, Places, Turns
from segserve_builder.steps.postprocess import SCORED_ONLY
from segserve_builder.steps.public_outputs import GEOMETRY, NETWORK_INPUT, extra_input, network_output
from segserve_builder.steps.session import Arena, InputMemoryError
from segserve_builder.steps.step_options import PipelineOptions
from segserve_builder.values import ResizeTransform

Run: TypeAlias = Callable[[NDArray[Any], Sequence[NDArray[Any]]], dict[str, NDArray[Any]]]
"""Runs a network over one image and its inputs beside it, each a batch of one."""


class JoinedSteps:
    """Answers requests from any thread. Memory is limited once `limit` is called."""

    def __init__(self, options: PipelineOptions, network: Path, instances: int) -> None:
        """Load the network's file, for at most so many images at a time."""
        self._layout = options.net.layout
        self._extras = len(options.net.extra or ())
        self._pre, self._post = pre.TritonPythonModel(), post.TritonPythonModel()
        self._pre.open(options.pre)
        self._session = ImageSession(network, options.net)
        self._post.open(options.post)
        self._turns, self._places = Turns(instances), Places(instances)
        self._images = Arena()
        self._limit_bytes: int | None = None

    def limit(self) -> int | None:
        """Limit what requests may allocate from now on, and return that."""
        self._limit_bytes = limit_allocations()
        return self._limit_bytes

    def free(self) -> None:
        """Give all memory back that a request can do without; no image may run."""
        self._session.close()

    def close(self) -> None:
        """Report what was counted last."""
        self._post.finalize()

    def answer(self, request: SentRequest) -> dict[str, NDArray[Any]] | StepFailure:
        """Return the public outputs that a request requires, or why it failed."""
        try:
            # A request that chooses its objects may have far more of them.
            chooses = any(name in parameters_of(request) for name in SCORED_ONLY)
            kind = "pixels with chosen objects" if chooses else "pixels"
            with self._places.taken(pre.pixels_of(request), kind) as place:
                return self._answered_in_turn(request, place)
        except _NoMemoryError as error:
            return failure_of(ImageMemoryError(str(error), self._limit_bytes), request.id)
        except Exception as error:
            return failure_of(error, request.id)

    def _answered_in_turn(self, request: SentRequest, place: Place) -> dict[str, NDArray[Any]]:
        try:
            with self._turns.beside() as running:
                return self.answered(request, place, lambda image, extra: self._session.run(image, running, extra))
        except _NoMemoryError:
            pass
        # An image must not depend on what runs beside it.
        with self._turns.alone():
            self.free()
            return self.answered(request, place, self._session.run_alone)

    def answered(self, request: SentRequest, place: Place, run: Run) -> dict[str, NDArray[Any]]:
        """Return the public outputs that a request requires; `run` runs the network over one image."""
        tensors, outputs = self.run_network(request, run)
        tensors |= {network_output(name): array for name, array in outputs.items()}
        return self.postprocessed(replace(request, tensors={**request.tensors, **tensors}), place)

    def run_network(self, request: SentRequest, run: Run) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Return what passes from the first step to the last, and the network's outputs, both by name."""
        with spans("pre", request.parents), self.described(lambda: pre.describe(request)):
            tensors = self._pre.answer(request)
        given = tensors.pop(NETWORK_INPUT)
        extra = [tensors.pop(extra_input(place)) for place in range(self._extras)]
        with spans("network", request.parents), self.described(lambda: described_input(given, self._layout)):
            return tensors, self._outputs(given, extra, run)

    def postprocessed(self, after: SentRequest, place: Place) -> dict[str, NDArray[Any]]:
        """Return the public outputs of a request that has the network's outputs beside its own tensors."""
        with spans("post", after.parents), self.described(lambda: post.describe(after)):
            answer = self._post.answer(after, place)
        assert answer is not None  # a model with a heavy network has steps of its own
        size = ResizeTransform.from_numbers(after.tensors[GEOMETRY.name])
        if self._images.is_much_smaller(size.height * size.width):
            return_freed_memory()
        return answer

    def _outputs(self, given: NDArray[Any], extra: Sequence[NDArray[Any]], run: Run) -> dict[str, NDArray[Any]]:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            return run(given, extra)
        except InvalidArgument as error:  # a shape or type that is not allowed
            raise BadImageError(str(error)) from error

    @contextmanager
    def described(self, work: Callable[[], str]) -> Iterator[None]:
        """Name the work of the context in the error of a request that needs more memory than there is."""
        try:
            yield
        except InputMemoryError as error:
            raise ImageMemoryError(work(), self._limit_bytes) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise _NoMemoryError(work()) from error
            raise


class _NoMemoryError(MemoryError):
    """Memory did not suffice for what it says, perhaps because of other images."""
