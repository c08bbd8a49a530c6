"""The target of a rendered repository: a release of Triton, and the backend that runs networks."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
_RELEASE: Final = re.compile(r"(\d\d)\.(\d\d)")


@dataclass(frozen=True, slots=True)
class RenderTarget:
    """A release of Triton (year and month), the preferred backend for networks, and the processors of a server.

    `cpus` is None if they are those of its machine. None of it changes answers or the name of a revision; the names of
    steps that differ do change.
    """

    release: tuple[int, int] = OLDEST
    backend: Backend = "python"
    cpus: int | None = None

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
    def has_histograms(self) -> bool:
        """Whether the release has `model_metrics` with histograms."""
        return self.release >= HISTOGRAMS_SINCE

    def joins_steps(self, pipeline: Pipeline) -> bool:
        """Return whether one step is all of a model: a network on the CPU, with the defaults of how it runs.

        The number of its instances depends on the server's processors, so they have to be known. Two networks, tiles
        and streams have steps of their own, and so has what chooses its engine, instances or threads.
        """
        runtime = pipeline.runtime
        chosen = runtime.instances > 1 or runtime.intra_op_threads > 0 or runtime.engine is not None
        plain = pipeline.second is None and pipeline.cascade is None and not pipeline.inference
        here = self.backend == "python" and self.cpus is not None and runtime.device != "gpu"
        return here and plain and not chosen and smoothing_of(pipeline) is None

    @property
    def joined_instances(self) -> int:
        """The instances of a step that is all of a model: one for each processor, and one that waits for the next."""
        return min(self.cpus or 1, MOST_JOINED) + 1

    def runs_natively(self, pipeline: Pipeline, io: NetworkIO) -> bool:
        """Return whether Triton's own backend runs a network: once per image, on a CPU in whole batches.

        Tiles and augmented views need the Python step; on a CPU files that fix the batch as well.
        """
        fits = io.has_free_batch or pipeline.runtime.device == "gpu"
        return self.backend == "onnxruntime" and not pipeline.inference and fits


EMBEDDED: Final = RenderTarget()
"""The local platform's target: Triton 2.51 with the Python backend alone."""
