"""Runs a model's whole pipeline in this process with ONNX Runtime; answers equal its servers' answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segserve_builder.families.base import NetworkIO
from segserve_builder.spec.model_spec import Engine
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.cascade import check_cascade, light_score
from segserve_builder.steps.inference import decoder_io, network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.out_of_distribution import score_of
from segserve_builder.steps.pipeline import Cascade, Pipeline
from segserve_builder.steps.postprocess import Postprocess, check_postprocess
from segserve_builder.steps.preprocess import NetworkInput, Preprocess
from segserve_builder.steps.preprocess_rules import common_io
from segserve_builder.steps.prompts import NO_PROMPT, PromptDecoder, PromptInputs
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import NetOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray


class InProcessModel:
    """One model. Raises its steps' errors: `PipelineError`, `SignatureError`, `BadImageError`, `NonFiniteError`."""

    def __init__(
        self,
        pipeline: Pipeline,
        artifact: Path,
        second: Path | None = None,
        light: Path | None = None,
        decoder: Path | None = None,
        *,
        engine: Engine | None = None,
        gpu: int | None = None,
        network: NetworkSession | None = None,
    ) -> None:
        """Load the network's file, and the files of the pipeline's other networks if it has them.

        `engine` and `gpu` run the networks whatever the pipeline says: this machine may lack what servers have.
        `network` is a session of the first one, if there is one already.
        """
        io, self._network = _loaded(pipeline, artifact, engine, gpu, network)
        given, second_io, self._second = io, None, None
        if pipeline.second is not None and second is not None:
            second_io, self._second = _loaded(pipeline.second, second, engine, gpu)
            given = common_io(io, second_io)
        check_cascade(pipeline)
        self.task = check_postprocess(pipeline)
        self.pipeline, self.artifact = pipeline, artifact
        self._light = None if pipeline.light is None or light is None else InProcessModel(pipeline.light, light)
        self._outputs = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS[self.task]) - {"REVISION"}
        self._preprocess = Preprocess(
            pipeline.preprocess,
            pipeline.input,
            given.input,
            io.layout,
            guided=pipeline.needs_guide,
            measures=pipeline.scores_detail,
            extra=given.extra or (),
        )
        self._extras = len(io.extra or ())
        self._unlike = pipeline.out_of_distribution
        self._decoder = None
        if decoder is not None:
            decoded = decoder_io(pipeline, read_signature(decoder), io)
            self._decoder, io = PromptDecoder(decoder, decoded), replace(io, outputs=decoded.outputs)
        self._postprocess = Postprocess(pipeline, io, second_io)

    def network_input(self, image: bytes) -> NetworkInput:
        """Return the network's input for one encoded image."""
        return self._preprocess(image, None)

    def raw(self, given: NetworkInput) -> dict[str, NDArray[Any]]:
        """Return the first network's outputs by name, with a batch of one.

        Dtypes and shapes are as the network's file declares them.
        """
        return self._network.run(given.tensor, given.extra[: self._extras])

    def feeds(self, image: bytes) -> list[dict[str, NDArray[Any]]]:
        """Return the inputs that the network's file gets for one encoded image, as it declares them."""
        given = self.network_input(image)
        return self._network.feeds(given.tensor, given.extra[: self._extras])

    def answer(
        self,
        image: bytes,
        request: RequestOptions,
        raw: dict[str, NDArray[Any]] | None = None,
        prompt: PromptInputs = NO_PROMPT,
    ) -> dict[str, NDArray[Any]]:
        """Return every public output but REVISION for one encoded image, of the network's outputs `raw` if it is set.

        Dtypes and shapes follow the wire contract. The `prompt` is for a promptable network, whose answer has no object
        without one.
        """
        if self._light is not None and self.pipeline.cascade is not None:
            score, outputs = self._light.scored(image, request, self.pipeline.cascade)
            if score < self.pipeline.cascade.threshold:
                return outputs
        given = self.network_input(image)
        return self._answered(given, raw or self.raw(given), request, self._outputs, lambda value: None, prompt)

    def scored(self, image: bytes, request: RequestOptions, cascade: Cascade) -> tuple[float, dict[str, NDArray[Any]]]:
        """Return the score of this network's answer as the light one of a cascade, and the answer."""
        given, values = self.network_input(image), list[Any]()
        outputs = self._answered(given, self.raw(given), request, self._outputs, values.append)
        return light_score(cascade, values[0], self.pipeline, given.transform), outputs

    def score(self, image: bytes) -> float | None:
        """Return how unlike its usual images the pipeline's `out_of_distribution` takes one encoded image to be.

        None if its answer shows nothing, or if the pipeline judges no images.
        """
        if self._unlike is None:
            return None
        given = self.network_input(image)
        values: list[Any] = []
        self._answered(given, self.raw(given), RequestOptions(), frozenset(), values.append)
        return score_of(self._unlike.score, values[0], given.statistics)

    def _answered(
        self,
        given: NetworkInput,
        raw: dict[str, NDArray[Any]],
        request: RequestOptions,
        outputs: frozenset[str],
        observe: Callable[[Any], object],
        prompt: PromptInputs = NO_PROMPT,
    ) -> dict[str, NDArray[Any]]:
        if self._decoder is not None:
            raw = self._decoder(raw, prompt, given.transform)
        second = None if self._second is None else self._second.run(given.tensor, given.extra[self._extras :])
        return self._postprocess(raw, given.transform, request, outputs, given.guide, second, observe=observe)


def _loaded(
    pipeline: Pipeline, artifact: Path, engine: Engine | None, gpu: int | None, opened: NetworkSession | None = None
) -> tuple[NetworkIO, NetworkSession]:
    io = network_io(pipeline, read_signature(artifact))
    options = NetOptions.of(pipeline, io).model_copy(update={"engine": engine})
    return io, opened or NetworkSession(artifact, options, gpu=gpu)
