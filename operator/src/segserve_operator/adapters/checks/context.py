"""What checks are made with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from segserve_builder.sources.access import Access
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.core.gates.checks import Check, CheckResult, ResourceSample


class ResourceSource(Protocol):
    """Where it can be seen what servers use."""

    async def look(self, group: str) -> ResourceSample:
        """Return what the servers of a group use now; what cannot be measured is left out."""
        ...


def _nowhere() -> None:
    """Relative URIs were made absolute when the resource was read."""


@dataclass(frozen=True, slots=True)
class CheckContext:
    """The ports of one pool. `clock` returns Unix time in seconds, `cache` is the folder of fetched golden sets.

    `local` says that users are this machine's own: then what listens on loopback may be asked. `base` returns what
    relative URIs are relative to now (None is nothing), `access` where golden sets may be fetched from. `samples` are
    those of each group that is looked at, the first and the latest.
    """

    gateway: InternalGateway
    cache: Path
    resources: ResourceSource
    clock: Callable[[], float]
    local: bool = False
    base: Callable[[], str | None] = _nowhere
    access: Callable[[], Access] = Access
    samples: dict[str, tuple[ResourceSample, ...]] = field(default_factory=dict)


ReportResult: TypeAlias = "Callable[[CheckResult], None]"
RunCheck: TypeAlias = "Callable[[Check, CheckContext, ReportResult], Awaitable[CheckResult]]"
"""Finds one thing out, and tells of it meanwhile where that is of use; raises `CheckError` where it cannot."""


@dataclass(slots=True)
class RequestCounts:
    """Our own requests to (stable, candidate) so far."""

    asked: list[int] = field(default_factory=lambda: [0, 0])
    failed: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, side: int, *, failed: bool) -> None:
        """Count one that came to its end."""
        self.asked[side] += 1
        self.failed[side] += failed

    def result(self, key: str, at_s: float, *, done: bool) -> CheckResult:
        """Return them as a finding."""
        asked, failed = (self.asked[0], self.asked[1]), (self.failed[0], self.failed[1])
        return CheckResult(key, at_s, done=done, asked=asked, failed=failed)
