"""The step `post` inside Triton: turns raw outputs into the public outputs."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve_builder.backend.responses import input_array, respond
from segserve_builder.errors import BadImageError
from segserve_builder.memory import limit_allocations
from segserve_builder.steps.postprocess import Postprocess, request_from_parameters
from segserve_builder.steps.public_outputs import (
    CONTINUED,
    GEOMETRY,
    GUIDE,
    REVISION,
    network_output,
    second_output,
)
from segserve_builder.steps.step_options import PostOptions
from segserve_builder.steps.streams import FRAME, Frame, Streams, frame_number, smoothing_of
from segserve_builder.values import ResizeTransform


class TritonPythonModel:
    """Postprocesses one image per request, and computes only the requested outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the pipeline's last step from its options."""
        options = PostOptions.from_model_config(args["model_config"])
        self._output = options.pipeline.output
        self._guided = options.pipeline.needs_guide
        self._revision = np.array([options.revision.encode()], np.object_)
        self._raw = {tensor.name: network_output(tensor.name) for tensor in options.io.outputs}
        second = () if options.second_io is None else options.second_io.outputs
        self._second = {tensor.name: second_output(tensor.name) for tensor in second}
        self._postprocess = Postprocess(options.pipeline, options.io, options.second_io)
        smoothing = smoothing_of(options.pipeline)
        self._streams = None if smoothing is None else Streams.of(smoothing, time.monotonic)
        self._limit_bytes = limit_allocations()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        answer = self._answer if self._streams is None else partial(self._answer_frame, self._streams)
        return respond(requests, answer, _describe, self._limit_bytes)

    def _answer_frame(self, streams: Streams, request: Any) -> dict[str, NDArray[Any]]:
        """Answer a frame of a stream; a frame that fails leaves the stream's history unchanged."""
        stream, flags = request.correlation_id(), request.flags()
        parameters = _parameters(request)
        number = frame_number(parameters.pop(FRAME)) if FRAME in parameters else None
        frame = streams.frame(stream, flags, number)
        answer = self._answered(request, parameters, frame)
        if frame is not None:
            streams.keep(stream, flags, frame)
        return answer

    def _answer(self, request: Any) -> dict[str, NDArray[Any]]:
        return self._answered(request, _parameters(request))

    def _answered(
        self, request: Any, parameters: dict[str, Any], frame: Frame | None = None
    ) -> dict[str, NDArray[Any]]:
        overrides = request_from_parameters(parameters, self._output)
        raw = {name: _required(request, tensor) for name, tensor in self._raw.items()}
        transform = ResizeTransform.from_numbers(_required(request, GEOMETRY.name))
        wanted = frozenset(request.requested_output_names())
        # What is known of the stream now: the stages replace its history.
        continued = np.array([frame is not None and frame.history is not None], np.int32)
        known = {REVISION: self._revision, CONTINUED.name: continued}
        ours = {name: known[name] for name in wanted & known.keys()}
        guide = _required(request, GUIDE.name) if self._guided else None
        second = {name: _required(request, tensor) for name, tensor in self._second.items()}
        return self._postprocess(raw, transform, overrides, wanted - ours.keys(), guide, second, frame) | ours


def _parameters(request: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
    return parameters


def _describe(request: Any) -> str:
    size = ResizeTransform.from_numbers(_required(request, GEOMETRY.name))
    return f"postprocessing an image of {size.height} x {size.width} pixels"


def _required(request: Any, name: str) -> NDArray[Any]:
    array = input_array(request, name)
    if array is None:
        raise BadImageError(f"the input {name!r} is missing")
    return array
