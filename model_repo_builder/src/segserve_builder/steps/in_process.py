"""Runs a model's whole pipeline in this process with ONNX Runtime; answers equal those of its servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.inference import with_inference
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.postprocess import Postprocess, check_postprocess
from segserve_builder.steps.preprocess import NetworkInput, Preprocess
from segserve_builder.steps.preprocess_rules import common_input
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import NetOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray


class InProcessModel:
    """One model. Raises its steps' errors: `PipelineError`, `SignatureError`, `BadImageError`, `NonFiniteError`."""

    def __init__(self, pipeline: Pipeline, artifact: Path, second: Path | None = None) -> None:
        """Load the network's file, and that of the pipeline's second network if it has one."""
        io, self._network = _loaded(pipeline, artifact)
        given, second_io, self._second = io, None, None
        if pipeline.second is not None and second is not None:
            second_io, self._second = _loaded(pipeline.second, second)
            given = replace(io, input=common_input(io, second_io))
        self.task = check_postprocess(pipeline)
        self._outputs = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS[self.task]) - {"REVISION"}
        self._preprocess = Preprocess(
            pipeline.preprocess, pipeline.input, given.input, io.layout, guided=pipeline.needs_guide
        )
        self._postprocess = Postprocess(pipeline, io, second_io)

    def network_input(self, image: bytes) -> NetworkInput:
        """Return the network's input for one encoded image."""
        return self._preprocess(image, None)

    def raw(self, given: NetworkInput) -> dict[str, NDArray[Any]]:
        """Return the first network's outputs by name, with a batch of one.

        Dtypes and shapes are those that the network's file declares.
        """
        return self._network.run(given.tensor)

    def answer(self, image: bytes, request: RequestOptions) -> dict[str, NDArray[Any]]:
        """Return every public output but REVISION for one encoded image.

        Dtypes and shapes are those of the wire contract.
        """
        given = self.network_input(image)
        second = None if self._second is None else self._second.run(given.tensor)
        return self._postprocess(self.raw(given), given.transform, request, self._outputs, given.guide, second)


def _loaded(pipeline: Pipeline, artifact: Path) -> tuple[NetworkIO, NetworkSession]:
    io = with_inference(pipeline, FAMILIES[pipeline.family].network_io(read_signature(artifact), pipeline))
    return io, NetworkSession(artifact, NetOptions.of(pipeline, io))
