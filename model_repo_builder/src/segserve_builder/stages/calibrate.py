"""The stage that calibrates probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import CANDIDATES, Candidates, Logits, ValueType


class Calibrate(Stage):
    """Divide logits by a temperature, so that predictions with a probability of 0.8 are right four times out of five.

    Temperature scaling: Guo et al., On Calibration of Modern Neural Networks, 2017. Labels do not change. A score is
    rescaled as the probability of a logit: scores keep their order, and later thresholds apply to the new scores.
    """

    takes: ClassVar[frozenset[ValueType]] = CANDIDATES | {ValueType.LOGITS}

    temperature: float = Field(
        gt=0,
        le=1000,
        description="Divisor of the logits: above 1 for an overconfident network, below 1 for an underconfident one.",
    )

    def __call__(self, value: Logits | Candidates, request: RequestOptions) -> Logits | Candidates:
        """Return the value with another temperature or other scores."""
        from segserve_builder.golden.calibration import rescaled

        if isinstance(value, Logits):
            return replace(value, temperature=value.temperature * self.temperature)
        return replace(value, scores=rescaled(value.scores, self.temperature))
