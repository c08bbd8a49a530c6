"""Context of checks: the ports of one pool, questions to tenants' services, and the counts of our own requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from segserve_operator.core.gates.checks import Check, CheckResult, ProbeCounts, ResourceSample

if TYPE_CHECKING:
    # The worker reads this module, and nothing of gateways and of Envoy.
    from segserve_operator.adapters.checks.gateway import InternalGateway


class ResourceSource(Protocol):
    """A source of the resource usage of servers."""

    async def look(self, group: str) -> ResourceSample:
        """Return what the servers of a group use now, without what cannot be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request to a tenant's service.

    A webhook gets `fields` as JSON, a Prometheus as a form. `pool` is the pool that sends it: pools share the
    capacity for requests.
    """

    kind: Literal["webhook", "promql"]
    pool: str
    url: str
    fields: Mapping[str, str | int]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """The status of a service's response; of a query also the smallest and the largest number of its result."""

    status: int
    values: tuple[float, float] | None = None


class Services(Protocol):
    """Services of tenants."""

    async def ask(self, question: Question) -> ServiceAnswer:
        """Send a question and return the answer; raises `CheckError` if no answer comes."""


@dataclass(frozen=True, slots=True)
class CheckContext:
    """The ports of the pool `pool`.

    `samples` holds the first and the latest samples of each group that is checked.
    """

    gateway: InternalGateway
    resources: ResourceSource
    services: Services
    pool: str = ""
    samples: dict[str, tuple[ResourceSample, ...]] = field(default_factory=dict)


ReportResult: TypeAlias = "Callable[[CheckResult], None]"
RunCheck: TypeAlias = "Callable[[Check, CheckContext, ReportResult], Awaitable[CheckResult]]"
"""Runs a check, and reports partial results on the way if they are useful; raises `CheckError` without a result."""


@dataclass(slots=True)
class RequestCounts:
    """Counts of our own requests to (stable, candidate)."""

    asked: list[int] = field(default_factory=lambda: [0, 0])
    failed: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, side: int, *, failed: bool) -> None:
        """Count a finished request."""
        self.asked[side] += 1
        self.failed[side] += failed

    def result(self, *, done: bool) -> ProbeCounts:
        """Return the counts as a result."""
        return ProbeCounts((self.asked[0], self.asked[1]), (self.failed[0], self.failed[1]), done)
