"""The step `post` inside Triton: turns raw outputs into the public outputs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve_builder.backend.heavy import HeavyModel
from segserve_builder.backend.metrics import MetricsReporter
from segserve_builder.backend.responses import input_array, log_error, parameters_of, respond
from segserve_builder.errors import BadImageError
from segserve_builder.memory import InstanceMemory, keep_freed_memory
from segserve_builder.spec.model_spec import OutOfDistributionPolicy
from segserve_builder.spec.names import AGENT_REQUEST_ID
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.answer_metrics import AnswerMetrics, Measures
from segserve_builder.steps.cascade import HEAVY, LIGHT, TIER, light_score
from segserve_builder.steps.image_session import Place
from segserve_builder.steps.out_of_distribution import FlaggedImageError, score_of
from segserve_builder.steps.postprocess import Postprocess, request_from_parameters, slice_of_parameters
from segserve_builder.steps.public_outputs import (
    CONTINUED,
    GEOMETRY,
    GUIDE,
    OUT_OF_DISTRIBUTION,
    OVERLAY,
    REVISION,
    empty,
    network_output,
    second_output,
)
from segserve_builder.steps.step_options import PostOptions
from segserve_builder.steps.streams import FRAME, Frame, Streams, frame_number, smoothing_of
from segserve_builder.values import ResizeTransform


class TritonPythonModel:
    """Postprocesses one image per request, and computes only the requested outputs.

    All instances of one process have one reporter of metrics.
    """

    def __init__(self, reporter: MetricsReporter | None = None) -> None:
        self._reporter = reporter or MetricsReporter()

    def initialize(self, args: dict[str, str]) -> None:
        """Build the pipeline's last step from its options."""
        keep_freed_memory()
        self.open(PostOptions.from_model_config(args["model_config"]))
        self._memory = InstanceMemory(args)

    def open(self, options: PostOptions) -> None:
        """Build the step."""
        self._output = options.pipeline.output
        self._guided = options.pipeline.needs_guide
        self._unlike = options.pipeline.out_of_distribution
        self._pipeline = options.pipeline
        self._heavy = None if options.heavy is None else HeavyModel(options.heavy, options.pipeline.input)
        self._revision = np.array([options.revision.encode()], np.object_)
        self._raw = {tensor.name: network_output(tensor.name) for tensor in options.io.outputs}
        second = () if options.second_io is None else options.second_io.outputs
        self._second = {tensor.name: second_output(tensor.name) for tensor in second}
        self._postprocess = Postprocess(options.pipeline, options.io, options.second_io)
        smoothing = smoothing_of(options.pipeline)
        self._streams = None if smoothing is None else Streams.of(smoothing, time.monotonic)
        self._metrics, self._report = None, None
        self._has_miscounted = False
        if options.metrics.answers:
            self._metrics = AnswerMetrics(options.pipeline, options.metrics, tiers=options.heavy is not None)
            try:
                self._report = self._reporter.add(self._metrics, options.pipeline.model, options.revision)
            except Exception as error:  # a server without metrics serves all the same
                self._metrics = None
                log_error(error)

    def finalize(self) -> None:
        """Wait for the heavy network's answers, and report what was counted last."""
        if self._heavy is not None:
            self._heavy.close()
        if self._report is not None:
            self._reporter.remove(self._report)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        answer = self.answer if self._streams is None else partial(self._answer_frame, self._streams)
        responses = respond(requests, answer, describe, self._memory)
        return responses if self._heavy is None else self._heavy.send(requests, responses)

    def _answer_frame(self, streams: Streams, request: Any) -> dict[str, NDArray[Any]] | None:
        """Answer a frame of a stream; a frame that fails leaves the stream's history unchanged."""
        stream, flags = request.correlation_id(), request.flags()
        parameters = parameters_of(request)
        number = frame_number(parameters.pop(FRAME)) if FRAME in parameters else None
        frame = streams.frame(stream, flags, number)
        answer = self._answered(request, parameters, frame)
        if frame is not None:
            streams.keep(stream, flags, frame)
        return answer

    def answer(self, request: Any, place: Place | None = None) -> dict[str, NDArray[Any]] | None:
        """Return the public outputs that a request requires; None if the heavy network is to answer.

        If it has a place for what it computes, it takes another one for its masks.
        """
        return self._answered(request, parameters_of(request), place=place)

    def _answered(
        self, request: Any, parameters: dict[str, Any], frame: Frame | None = None, place: Place | None = None
    ) -> dict[str, NDArray[Any]] | None:
        """Return the public outputs; None if the heavy network is to answer."""
        started_s = time.monotonic()
        is_test = request.request_id() == AGENT_REQUEST_ID
        tier = parameters.pop(TIER, None) if self._heavy is not None and is_test else None
        overrides = request_from_parameters(parameters, self._output)
        raw = {name: _required(request, tensor) for name, tensor in self._raw.items()}
        geometry = _required(request, GEOMETRY.name)
        transform = ResizeTransform.from_numbers(geometry)
        wanted = frozenset(request.requested_output_names())
        # What is known of the stream now: the stages replace its history.
        continued = np.array([frame is not None and frame.history is not None], np.int32)
        known = {REVISION: self._revision, CONTINUED.name: continued}
        late, drawn = wanted & {OUT_OF_DISTRIBUTION.name}, wanted & {OVERLAY.name}
        ours = {name: known[name] for name in wanted & known.keys()}
        guide = _required(request, GUIDE.name) if self._guided else None
        second = {name: _required(request, tensor) for name, tensor in self._second.items()}
        value = self._postprocess.value(raw, transform, overrides, guide, second, frame)
        if self._heavy is not None:
            cascade = self._heavy.cascade
            if tier is None:
                score = light_score(cascade, value, self._pipeline, transform)
                tier = LIGHT if score < cascade.threshold else HEAVY
            if self._metrics is not None and not is_test:
                self._metrics.count_tier(tier)
            if tier == HEAVY:
                return None
        if place is not None:
            place.take(*self._postprocess.encoded_masks(value, overrides, transform))
        outputs = self._postprocess.encoded(value, overrides, wanted - ours.keys() - late - drawn)
        if self._unlike is not None:
            ours |= dict.fromkeys(late, self._scored(self._unlike, request, value, geometry))
        ours |= {name: self._overlay(request, value, overrides) for name in drawn}
        if self._metrics is not None:
            times_s = (started_s, time.monotonic())
            label = slice_of_parameters(parameters)
            self._count(self._metrics, request, value, outputs, transform, geometry, times_s, label)
        return outputs | ours

    def _overlay(self, request: Any, value: Any, overrides: RequestOptions) -> NDArray[Any]:
        """Return the output OVERLAY; raises `BadImageError` for an image that came as pixels."""
        if overrides.overlay is None or OVERLAY.name not in (overrides.outputs or {OVERLAY.name}):
            return empty(OVERLAY)
        from segserve_builder.steps.overlay import overlay

        image = input_array(request, "IMAGE")
        if image is None:
            raise BadImageError("an overlay is drawn on an image's file: send IMAGE, or leave out 'overlay'")
        return np.array([overlay(value, self._pipeline, bytes(image.item()), overrides.overlay)], np.object_)

    def _scored(
        self, unlike: OutOfDistributionPolicy, request: Any, value: Any, geometry: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Return the output OUT_OF_DISTRIBUTION; raises `FlaggedImageError` for an image that is refused."""
        image = Measures.from_geometry(geometry).image if unlike.score == "detail" else None
        score = score_of(unlike.score, value, image)
        told = np.array([] if score is None else [score, unlike.threshold], np.float32)
        # An agent's built-in image is not one of the model's images, and some golden images are flagged by definition.
        if score is None or request.request_id() == AGENT_REQUEST_ID:
            return told
        # Decided as a caller decides by the output, whose numbers are rounded.
        margin = float(told[0]) - float(told[1])
        if self._metrics is not None:
            self._metrics.count_score(margin)
        if unlike.on_flag == "Refuse" and margin > 0:
            raise FlaggedImageError(score, unlike)
        return told

    def _count(
        self,
        metrics: AnswerMetrics,
        request: Any,
        value: Any,
        outputs: dict[str, NDArray[Any]],
        transform: ResizeTransform,
        geometry: NDArray[Any],
        times_s: tuple[float, float],
        label: str,
    ) -> None:
        try:
            measures = Measures.from_geometry(geometry)
            is_test = request.request_id() == AGENT_REQUEST_ID
            metrics.count(value, outputs, transform, measures, times_s, is_test=is_test, label=label)
        except Exception as error:  # an answer matters more than its metrics, and than a log of each one
            if not self._has_miscounted:
                log_error(error)
            self._has_miscounted = True


def describe(request: Any) -> str:
    """Name a request's work, with the image's size."""
    size = ResizeTransform.from_numbers(_required(request, GEOMETRY.name))
    return f"postprocessing an image of {size.width} x {size.height} pixels"


def _required(request: Any, name: str) -> NDArray[Any]:
    array = input_array(request, name)
    if array is None:
        raise BadImageError(f"the input {name!r} is missing")
    return array
