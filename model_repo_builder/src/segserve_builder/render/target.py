"""What a repository is rendered for: a release of Triton, and what runs networks there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias, get_args

from segserve_builder.errors import UnknownNameError
from segserve_builder.families.base import NetworkIO
from segserve_builder.steps.pipeline import Pipeline

Backend: TypeAlias = Literal["python", "onnxruntime"]
OLDEST: Final = (24, 10)
HISTOGRAMS_SINCE: Final = (26, 1)
"""Triton 2.65: from here on latencies of models that answer once come as histograms too."""
_RELEASE: Final = re.compile(r"(\d\d)\.(\d\d)")


@dataclass(frozen=True, slots=True)
class RenderTarget:
    """A release, year and month as NVIDIA names them, and the backend that runs a network wherever it can.

    Neither changes an answer, nor the name of a revision; the names of steps that differ do.
    """

    release: tuple[int, int] = OLDEST
    backend: Backend = "python"

    @classmethod
    def named(cls, release: str, backend: str) -> Self:
        """Return the target of a release such as '26.04'; raises `UnknownNameError`."""
        found = _RELEASE.fullmatch(release)
        if found is None or (number := (int(found[1]), int(found[2]))) < OLDEST:
            raise UnknownNameError("release of Triton", release, ["24.10 and later, as year.month"])
        for known in get_args(Backend):
            if backend == known:
                return cls(number, known)
        raise UnknownNameError("backend of networks", backend, get_args(Backend))

    @property
    def has_histograms(self) -> bool:
        """Whether the release knows `model_metrics` and fills them."""
        return self.release >= HISTOGRAMS_SINCE

    def runs_natively(self, pipeline: Pipeline, io: NetworkIO) -> bool:
        """Tell whether the server itself can run a network: over whole batches, once an image.

        Tiles, views, and files that take or give one image without a batch need the Python step.
        """
        batches = all(tensor.shape[0] is None for tensor in (io.input, *io.outputs))
        return self.backend == "onnxruntime" and not pipeline.inference and io.batched and batches


EMBEDDED: Final = RenderTarget()
"""What the local platform serves on: Triton 2.51, which has no backend but Python's."""
