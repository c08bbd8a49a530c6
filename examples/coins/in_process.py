"""The models of model.yaml, run in this process by the stages that are served, without Triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnxruntime

from segserve_builder.families import FAMILIES
from segserve_builder.onnx_signature import read_signature
from segserve_builder.postprocess import Postprocess, request_from_parameters
from segserve_builder.preprocess import Preprocess
from segserve_builder.public_outputs import PUBLIC_OUTPUTS
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.values import Placement

RESOURCES: Final = Path(__file__).parent / "model.yaml"


class InProcessModel:
    """One model of model.yaml."""

    def __init__(self, resource: SegmentationModel) -> None:
        """Read the network's file beside model.yaml."""
        artifact = RESOURCES.parent / resource.spec.artifact.uri
        self._pipeline = resource.spec.pipeline(resource.metadata.name)
        family = FAMILIES[self._pipeline.family]
        io = family.network_io(read_signature(artifact), self._pipeline)
        self._session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
        self._input = io.input.name
        self._raw = [tensor.name for tensor in io.outputs]
        self._outputs = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS[family.task]) - {"REVISION"}
        self._preprocess = Preprocess(self._pipeline.preprocess, self._pipeline.input, io.input, io.layout)
        self._postprocess = Postprocess(self._pipeline, io)

    def network_input(self, image: bytes) -> tuple[NDArray[Any], Placement]:
        """Return the network's input for one encoded image, and where the image lies in it."""
        return self._preprocess(image, None)

    def answer(self, image: bytes, encoding: str) -> dict[str, NDArray[Any]]:
        """Return every public output but REVISION for one encoded image."""
        array, placement = self.network_input(image)
        raw = dict(zip(self._raw, self._session.run(self._raw, {self._input: array}), strict=True))
        request = request_from_parameters({"encoding": encoding}, self._pipeline.output)
        return self._postprocess(raw, placement, request, self._outputs)


def resources() -> dict[str, SegmentationModel]:
    """Return the resources of model.yaml by name."""
    loaded = load(RESOURCES.read_text(), RESOURCES.name)
    return {item.metadata.name: item for item in loaded if isinstance(item, SegmentationModel)}
