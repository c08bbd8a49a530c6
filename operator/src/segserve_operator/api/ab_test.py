"""The spec of an A/B test: two revisions divide callers by id for a declared time, and are compared by a metric."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from segserve_operator.api.checks import located
from segserve_operator.api.meta import ApiValue, Duration, format_duration

_SHORTEST: timedelta = timedelta(minutes=1)
_NO_LIMIT = "the metric slowRate needs slowMilliseconds, and errorRate takes none"


def _check_long_enough(duration: timedelta) -> timedelta:
    if duration < _SHORTEST:
        raise located(f"must be at least {format_duration(_SHORTEST)}, got {format_duration(duration)}")
    return duration


TestDuration: TypeAlias = Annotated[Duration, AfterValidator(_check_long_enough)]


class AbTest(ApiValue):
    """An A/B test by id: the same caller's id gets the same revision for the whole test."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "(self.metric == 'slowRate') == has(self.slowMilliseconds)", "message": _NO_LIMIT}
            ]
        }
    )

    weight: int = Field(default=50, ge=1, le=99, description="Percent of ids whose requests the candidate gets.")
    duration: TestDuration = Field(description="How long both revisions get requests; at least 1m.")
    metric: Literal["errorRate", "slowRate"] = Field(
        default="errorRate",
        description="What is compared: the share of requests that fail, or that take longer than slowMilliseconds.",
    )
    slow_milliseconds: float | None = Field(
        default=None, gt=0, le=100_000, description="Latency in milliseconds from which a request is slow (slowRate)."
    )
    confidence_percent: float = Field(
        default=95.0,
        ge=50,
        le=99.99,
        description="Probability that the interval of the difference holds it at each moment of the test.",
    )

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if (self.metric == "slowRate") != (self.slow_milliseconds is not None):
            raise located(_NO_LIMIT, "slowMilliseconds")
        return self
