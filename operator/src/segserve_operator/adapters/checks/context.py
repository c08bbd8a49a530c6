"""Context of checks: the ports of one pool, and the counts of our own requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from segserve_common.http.urls import AddressCheck
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.core.gates.checks import Check, CheckResult, ResourceSample


class ResourceSource(Protocol):
    """A source of the resource usage of servers."""

    async def look(self, group: str) -> ResourceSample:
        """Return what the servers of a group use now, without what cannot be measured."""
        ...


@dataclass(frozen=True, slots=True)
class CheckContext:
    """The ports of one pool. `clock` returns Unix time in seconds.

    `check_address` says which services may be asked. `samples` holds the first and the latest samples of each group
    that is checked. `evaluation` is held while an expression is evaluated, so that no pool holds up all others.
    """

    gateway: InternalGateway
    resources: ResourceSource
    clock: Callable[[], float]
    check_address: AddressCheck
    samples: dict[str, tuple[ResourceSample, ...]] = field(default_factory=dict)
    evaluation: asyncio.Lock = field(default_factory=asyncio.Lock)


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

    def result(self, key: str, at_s: float, *, done: bool) -> CheckResult:
        """Return the counts as a result."""
        asked, failed = (self.asked[0], self.asked[1]), (self.failed[0], self.failed[1])
        return CheckResult(key, at_s, done=done, asked=asked, failed=failed)
