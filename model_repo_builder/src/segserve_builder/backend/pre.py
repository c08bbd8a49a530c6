"""The step `pre` inside Triton: turns an encoded image, or its pixels, into the network's input."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segserve_builder.backend.responses import input_array, respond
from segserve_builder.memory import InstanceMemory, keep_freed_memory
from segserve_builder.steps.answer_metrics import Measures
from segserve_builder.steps.preprocess import Preprocess
from segserve_builder.steps.public_outputs import GEOMETRY, GUIDE, NETWORK_INPUT, extra_input
from segserve_builder.steps.step_options import PreOptions


class TritonPythonModel:
    """Decodes and preprocesses one image per request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the pipeline's first step from its options."""
        keep_freed_memory()
        self.open(PreOptions.from_model_config(args["model_config"]))
        self._memory = InstanceMemory(args)

    def open(self, options: PreOptions) -> None:
        """Build the step."""
        network, layout = options.network_input, options.layout
        self._is_first = True
        self._preprocess = Preprocess(
            options.preprocess,
            options.input,
            network,
            layout,
            guided=options.guided,
            measures=options.measures,
            extra=options.extra or (),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        return respond(requests, self.answer, describe, self._memory)

    def answer(self, request: Any) -> dict[str, NDArray[Any]]:
        """Return the network's input and what passes to the last step, by name; raises `BadImageError`."""
        started_s = time.monotonic()
        encoded = input_array(request, "IMAGE")
        image = None if encoded is None else bytes(encoded.item())
        network_input = self._preprocess(image, input_array(request, "PIXELS"))
        tensors = {
            NETWORK_INPUT: network_input.tensor,
            GEOMETRY.name: np.array(network_input.transform.to_numbers(), np.int32),
        }
        tensors |= {extra_input(place): array for place, array in enumerate(network_input.extra)}
        if network_input.guide is not None:
            tensors[GUIDE.name] = network_input.guide
        if network_input.statistics is not None:
            measures = Measures(network_input.statistics, started_s, time.monotonic(), float(self._is_first))
            tensors[GEOMETRY.name] = np.concatenate([tensors[GEOMETRY.name], measures.to_numbers()])
            self._is_first = False
        return tensors


def pixels_of(request: Any) -> int:
    """Return the number of pixels of a request's image; 0 for a request without one."""
    from segserve_builder.imaging.decoding import pixels_in

    pixels, encoded = input_array(request, "PIXELS"), input_array(request, "IMAGE")
    if pixels is not None:
        return int(np.prod(pixels.shape[:2]))
    return 0 if encoded is None or encoded.size != 1 else pixels_in(bytes(encoded.item()))


def describe(request: Any) -> str:
    """Name a request's work, with the image's size if it is known."""
    pixels = input_array(request, "PIXELS")
    if pixels is None:
        return "preprocessing this image"
    return f"preprocessing an image of {pixels.shape[1]} x {pixels.shape[0]} pixels"
