"""The spec of Shadow: a candidate is asked copies of callers' requests before any caller gets its answer."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from segserve_operator.api.meta import ApiValue, Duration


class Shadow(ApiValue):
    """Copies of callers' requests that stable and the candidate are both asked before the first step."""

    enabled: bool = Field(default=True, description="Set to false to disable Shadow where it is on by default.")
    percent: int = Field(
        default=50, ge=1, le=100, description="Percent of callers' inference requests that are copied."
    )
    max_requests_per_second: float = Field(
        default=5.0,
        gt=0,
        le=1000,
        description="Maximum number of copies per second that each gateway sends to both revisions.",
    )
    min_requests: int = Field(
        default=200, ge=20, le=100_000, description="Number of copies that both revisions get before the first step."
    )
    max_duration: Duration = Field(
        default=timedelta(minutes=10),
        description="Maximum duration; after it the steps begin with the evidence so far, unless the candidate is "
        "probably worse.",
    )

    def copies_per_second(self, requests_per_second: float) -> float:
        """Return how many copies a gateway takes at most, of so many requests of callers."""
        return min(requests_per_second * self.percent / 100, self.max_requests_per_second)
