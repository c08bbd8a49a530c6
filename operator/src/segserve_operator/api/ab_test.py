"""The spec of an A/B test: two revisions divide callers by id for a declared time, and are compared by a metric."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from segserve_operator.api.checks import located
from segserve_operator.api.meta import ApiValue, Duration, format_duration

QUANTILES: Final[Mapping[str, float]] = {"p50Latency": 0.5, "p95Latency": 0.95, "p99Latency": 0.99}
"""Metrics that are quantiles of the latency."""
REVISION: Final = "{revision}"
_NO_LIMIT = "the metric slowRate needs slowMilliseconds, and the other metrics take none"
_NO_QUERY = "the metric promql needs promql, and the other metrics take none"
_NO_REVISION = f"query must name the revision as {REVISION}: it is sent once for each of the two"
_NO_RANGE = "minimum must be less than maximum"


def _at_least(shortest: timedelta) -> AfterValidator:
    def check(duration: timedelta) -> timedelta:
        if duration < shortest:
            raise located(f"must be at least {format_duration(shortest)}, got {format_duration(duration)}")
        return duration

    return AfterValidator(check)


TestDuration: TypeAlias = Annotated[Duration, _at_least(timedelta(minutes=1))]
QueryTime: TypeAlias = Annotated[Duration, _at_least(timedelta(seconds=1))]


class AbTestQuery(ApiValue):
    """A PromQL metric with one value per revision, asked for at intervals."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": f"self.query.contains('{REVISION}')", "message": _NO_REVISION},
                {"rule": "self.minimum < self.maximum", "message": _NO_RANGE},
            ]
        }
    )

    address: str = Field(max_length=2048, pattern=r"^https?://", description="URL of the Prometheus server.")
    query: str = Field(
        max_length=4096,
        description="PromQL query with one series; {revision} is replaced by each of the two revisions, {model}, "
        "{candidate} and {stable} by the current names.",
    )
    minimum: float = Field(ge=-1e12, le=1e12, description="Least value that the query can have.")
    maximum: float = Field(ge=-1e12, le=1e12, description="Largest value that the query can have.")
    better: Literal["lower", "higher"] = Field(default="lower", description="Which values are better.")
    interval: QueryTime = Field(
        default=timedelta(minutes=1),
        description="Interval between queries; at least the range that the query looks back.",
    )
    timeout: QueryTime = Field(default=timedelta(seconds=10), description="How long to wait for an answer.")

    @field_validator("query")
    @classmethod
    def _check_revision(cls, query: str) -> str:
        if REVISION not in query:
            raise located(f"{_NO_REVISION}; got {query!r}")
        return query

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.minimum >= self.maximum:
            raise located(f"{_NO_RANGE}, got {self.minimum:g} and {self.maximum:g}", "minimum")
        return self


class AbTest(ApiValue):
    """An A/B test by id: the same caller's id gets the same revision for the whole test."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "(self.metric == 'slowRate') == has(self.slowMilliseconds)", "message": _NO_LIMIT},
                {"rule": "(self.metric == 'promql') == has(self.promql)", "message": _NO_QUERY},
            ]
        }
    )

    weight: int = Field(default=50, ge=1, le=99, description="Percent of ids whose requests the candidate gets.")
    duration: TestDuration = Field(description="How long both revisions get requests; at least 1m.")
    metric: Literal["errorRate", "slowRate", "p50Latency", "p95Latency", "p99Latency", "promql"] = Field(
        default="errorRate",
        description="Value to compare: the share of requests that fail, or that take longer than slowMilliseconds; a "
        "percentile of the latency; or the value of a PromQL query.",
    )
    slow_milliseconds: float | None = Field(
        default=None, gt=0, le=100_000, description="Latency in milliseconds from which a request is slow (slowRate)."
    )
    promql: AbTestQuery | None = Field(default=None, description="The query of the metric promql.")

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if (self.metric == "slowRate") != (self.slow_milliseconds is not None):
            raise located(f"{_NO_LIMIT}; the metric is {self.metric}", "slowMilliseconds")
        if (self.metric == "promql") != (self.promql is not None):
            raise located(f"{_NO_QUERY}; the metric is {self.metric}", "promql")
        return self
