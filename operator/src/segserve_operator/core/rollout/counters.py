"""Counters of the gateways for one model, and its requests in flight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Protocol: TypeAlias = Literal["http", "grpc"]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of counts: a model's requests to one group, by protocol."""

    group: str
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class SeriesCounts:
    """Counters of one series at one gateway since it has the group.

    attempts: requests that ended; a retried request counts once per attempt. failed: attempts with a server error.
    given_up: attempts that timed out or whose caller disconnected. active: in flight now. latencies: (lower edge in ms,
    count) of non-empty bins, for answers only, from the last byte of the request to the last byte of the answer.
    left: attempts in given_up whose caller disconnected, and waited_ms: how long they had waited for an answer, in
    total.
    """

    attempts: int = 0
    failed: int = 0
    given_up: int = 0
    active: int = 0
    latencies: tuple[tuple[float, int], ...] = ()
    left: int = 0
    waited_ms: int = 0


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Counters of the pairs that one gateway's comparator sent to two groups, for one model.

    `baseline` and `shifts` are as in `core.evidence.Pairs`. `epoch` changes when the comparator starts anew, or
    compares other groups: it then counts from zero. failed: pairs by (stable failed, candidate failed): neither, the
    candidate alone, stable alone, both. latencies: of stable and candidate, as in `SeriesCounts`. ratios,
    disagreements: as in `core.evidence.Pairs`. dropped: copies that were not sent, since others were under way or there
    were too many.
    """

    epoch: str
    stable: str
    candidate: str
    failed: tuple[int, int, int, int] = (0, 0, 0, 0)
    latencies: tuple[tuple[tuple[float, int], ...], tuple[tuple[float, int], ...]] = ((), ())
    ratios: tuple[int, ...] = ()
    disagreements: tuple[int, ...] = ()
    dropped: int = 0
    baseline: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of one gateway. `epoch` changes when the gateway restarts and its counters start at zero again.

    `at_s` is the time of reading and `began_s` the time of its start, both Unix time. `pairs` are its comparator's, if
    it compares.
    """

    epoch: str
    at_s: float
    by_series: Mapping[Series, SeriesCounts] = field(default_factory=dict)
    began_s: float = 0.0
    pairs: PairCounts | None = None


Sample: TypeAlias = "Mapping[str, Counters]"
"""Counters of one model at all gateways that answered, by gateway."""


class InFlightSample(NamedTuple):
    """Number of attempts of (stable, candidate) that had ended at one gateway, and that were in flight."""

    at_s: float
    ended: tuple[float, float]
    active: tuple[float, float]


class InFlight(NamedTuple):
    """Attempts in flight at one gateway: the number of (stable, candidate) already counted as hung before their end,
    and recent samples, oldest first."""

    charged: tuple[float, float] = (0.0, 0.0)
    moments: tuple[InFlightSample, ...] = ()


@dataclass(frozen=True, slots=True)
class HungRequests:
    """State between windows, by gateway, so that a request that hangs is counted exactly once."""

    gateways: tuple[tuple[str, InFlight], ...] = ()

    def of(self, gateway: str) -> InFlight:
        """Return the state of a gateway; also accepts the plain tuples that JSON yields."""
        for name, (charged, moments) in self.gateways:
            if name == gateway:
                return InFlight(charged, tuple(InFlightSample(*moment) for moment in moments))
        return InFlight()
