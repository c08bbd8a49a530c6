"""The stage that drops candidates with low scores."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import CANDIDATES, Candidates, ValueType


class ScoreThreshold(Stage):
    """Keep candidates whose score is at least the threshold."""

    takes: ClassVar[frozenset[ValueType]] = CANDIDATES

    threshold: float = Field(
        0.25, ge=0, le=1, description="Least score that is kept; a request's score_threshold overrides it."
    )

    def __call__(self, value: Candidates, request: RequestOptions) -> Candidates:
        """Return the kept candidates, in the same order."""
        import numpy as np

        least = request.least_score(self.threshold)
        return value.take(np.flatnonzero(value.scores >= np.float32(least)))
