"""The stage that drops improbable candidates."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import CANDIDATES, Candidates, ValueType


class ScoreThreshold(Stage):
    """Keep candidates that score at least the threshold. The request's score_threshold overrides it."""

    takes: ClassVar[frozenset[ValueType]] = CANDIDATES

    threshold: float = Field(0.25, ge=0, le=1, description="The least score that is kept.")

    def __call__(self, value: Candidates, request: RequestOptions) -> Candidates:
        """Return the candidates that are kept, in their order."""
        import numpy as np

        least = request.least_score(self.threshold)
        return value.take(np.flatnonzero(value.scores >= np.float32(least)))
