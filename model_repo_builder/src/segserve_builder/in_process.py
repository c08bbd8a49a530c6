"""Runs a model's whole pipeline in this process with ONNX Runtime: what its servers answer, without servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segserve_builder.families import FAMILIES
from segserve_builder.onnx_signature import read_signature
from segserve_builder.postprocess import Postprocess, check_postprocess
from segserve_builder.preprocess import Preprocess
from segserve_builder.public_outputs import PUBLIC_OUTPUTS
from segserve_builder.session import NetworkSession
from segserve_builder.step_options import NetOptions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from segserve_builder.preprocess import NetworkInput
    from segserve_builder.stages.base import Request
    from segserve_builder.steps import Pipeline


class InProcessModel:
    """One model. Raises as its steps do: `PipelineError`, `SignatureError`, `BadImageError`, `NonFiniteError`."""

    def __init__(self, pipeline: Pipeline, artifact: Path) -> None:
        """Load the network's file."""
        io = FAMILIES[pipeline.family].network_io(read_signature(artifact), pipeline)
        self._network = NetworkSession(artifact, NetOptions.of(pipeline, io))
        self._outputs = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS[check_postprocess(pipeline)]) - {"REVISION"}
        self._preprocess = Preprocess(pipeline.preprocess, pipeline.input, io.input, io.layout, guided=pipeline.needs_guide)
        self._postprocess = Postprocess(pipeline, io)

    def network_input(self, image: bytes) -> NetworkInput:
        """Return the network's input for one encoded image."""
        return self._preprocess(image, None)

    def raw(self, given: NetworkInput) -> dict[str, NDArray[Any]]:
        """Return the network's outputs by name, with a batch of one."""
        return self._network.run(given.tensor)

    def answer(self, image: bytes, request: Request) -> dict[str, NDArray[Any]]:
        """Return every public output but REVISION for one encoded image."""
        given = self.network_input(image)
        return self._postprocess(self.raw(given), given.placement, request, self._outputs, given.guide)
