"""The target of a rendered repository: a release of Triton, and the backend that runs networks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias, get_args

from segserve_builder.errors import UnknownNameError
from segserve_builder.families.base import NetworkIO
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.streams import smoothing_of

Backend: TypeAlias = Literal["python", "onnxruntime"]
OLDEST: Final = (24, 10)
HISTOGRAMS_SINCE: Final = (26, 1)
"""Triton 2.65, the first release with latency histograms for models that are not decoupled."""
MOST_JOINED: Final = 16
"""Images that a step which is all of a model runs beside each other, at most."""
MOST_STAGES: Final = 8
"""Processes of the step before a network, and of the one after it, at most."""
RELEASE_VARIABLE: Final = "SEGSERVE_TRITON_VERSION"
BACKEND_VARIABLE: Final = "SEGSERVE_NETWORK_BACKEND"
"""Environment variables of an agent: its Triton's release, and the backend that runs networks."""
_RELEASE: Final = re.compile(r"(\d\d)\.(\d\d)")


@dataclass(frozen=True, slots=True)
class RenderTarget:
    """A release of Triton (year and month), its backend for networks on a GPU, and the processors of a server.

    `cpus` is None if they are not known. `engines` is the folder of TensorRT's engines, the same on all servers of a
    pool. None of it changes answers or the name of a revision; the names of steps that differ do change.
    """

    release: tuple[int, int] = OLDEST
    backend: Backend = "python"
    cpus: int | None = None
    has_gpu: bool = False
    engines: Path = Path("/tmp/segserve-engines")

    @classmethod
    def named(cls, release: str, backend: str, cpus: int | None = None) -> Self:
        """Return the target of a release such as '26.04'; raises `UnknownNameError`."""
        match = _RELEASE.fullmatch(release)
        if match is None or (number := (int(match[1]), int(match[2]))) < OLDEST:
            raise UnknownNameError("release of Triton", release, ["24.10 and later, as year.month"])
        for known in get_args(Backend):
            if backend == known:
                return cls(number, known, cpus)
        raise UnknownNameError("backend of networks", backend, get_args(Backend))

    @property
    def name(self) -> str:
        """The release as '26.04'."""
        return f"{self.release[0]}.{self.release[1]:02}"

    @property
    def has_histograms(self) -> bool:
        """Whether the release has `model_metrics` with histograms."""
        return self.release >= HISTOGRAMS_SINCE

    def uses_gpu(self, pipeline: Pipeline) -> bool:
        """Return whether a GPU runs a network: with `device: gpu`, or without a device if Triton can run it
        there.

        The Python step's ONNX Runtime may have no provider for GPUs, so tiles and augmented views have to request
        it.
        """
        if pipeline.runtime.device is None:
            return self.has_gpu and self.backend == "onnxruntime" and not pipeline.inference
        return pipeline.runtime.device == "gpu"

    def joins_steps(self, pipeline: Pipeline) -> bool:
        """Return whether one step is all of a model: a network on the CPU, with the defaults of how it runs.

        The number of its instances depends on the server's processors, so they have to be known. Two networks, tiles
        and streams have steps of their own, and so has what chooses its engine, instances or threads.
        """
        runtime = pipeline.runtime
        chosen = runtime.instances > 1 or runtime.intra_op_threads > 0 or runtime.engine is not None
        plain = pipeline.second is None and pipeline.cascade is None and not pipeline.inference
        here = self.cpus is not None and not self.uses_gpu(pipeline)
        return here and plain and not chosen and smoothing_of(pipeline) is None

    @property
    def joined_instances(self) -> int:
        """The instances of a step that is all of a model: one for each processor, and one that waits for the next."""
        return min(self.cpus or 1, MOST_JOINED) + 1

    def stage_instances(self, pipeline: Pipeline) -> int:
        """Return the instances of the steps before and after a network: a network on a GPU waits for them."""
        return min(self.cpus or 1, MOST_STAGES) if self.uses_gpu(pipeline) else 1

    def runs_natively(self, pipeline: Pipeline, io: NetworkIO) -> bool:
        """Return whether Triton's own backend runs a network: once per image, on a GPU or by OpenVINO.

        Tiles and augmented views need the Python step, and with OpenVINO also files that fix the batch. Other networks
        on a CPU have the Python step, which bounds the memory of a request.
        """
        fits = self.uses_gpu(pipeline) or (pipeline.runtime.engine == "openvino" and io.has_free_batch)
        return self.backend == "onnxruntime" and not pipeline.inference and fits


EMBEDDED: Final = RenderTarget()
"""The local platform's target: Triton 2.51 with only the Python backend."""
