"""The step `post` inside Triton: the network's raw outputs become the public answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from segserve_builder.backend.responses import input_array, respond
from segserve_builder.errors import BadImageError
from segserve_builder.postprocess import Postprocess, request_from_parameters
from segserve_builder.public_outputs import GEOMETRY, GUIDE, REVISION, network_output
from segserve_builder.step_options import PostOptions
from segserve_builder.values import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TritonPythonModel:
    """Postprocesses one image a request, and computes only the outputs that it asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the pipeline's last step from its options."""
        options = PostOptions.from_model_config(args["model_config"])
        self._output = options.pipeline.output
        self._guided = options.pipeline.needs_guide
        self._revision = np.array([options.revision.encode()], np.object_)
        self._raw = {tensor.name: network_output(tensor.name) for tensor in options.io.outputs}
        self._postprocess = Postprocess(options.pipeline, options.io)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response a request, in order."""
        return respond(requests, self._answer)

    def _answer(self, request: Any) -> dict[str, NDArray[Any]]:
        parameters = json.loads(request.parameters() or "{}")
        overrides = request_from_parameters(parameters, self._output)
        raw = {name: _required(request, tensor) for name, tensor in self._raw.items()}
        placement = Placement.from_numbers(_required(request, GEOMETRY.name))
        wanted = frozenset(request.requested_output_names())
        guide = _required(request, GUIDE.name) if self._guided else None
        answer = self._postprocess(raw, placement, overrides, wanted - {REVISION}, guide)
        return answer | {REVISION: self._revision} if REVISION in wanted else answer


def _required(request: Any, name: str) -> NDArray[Any]:
    array = input_array(request, name)
    if array is None:
        raise BadImageError(f"the input {name!r} is missing")
    return array
