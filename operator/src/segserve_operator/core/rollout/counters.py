"""What gateways have counted of a model, and the looks that lie between two countings."""

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
    """What one gateway has counted of one series since it knows the group.

    attempts: requests that ended; one that was asked again counts as often as it was asked. failed: those that failed
    by the server's fault. given_up: those that timed out, or whose caller went away first. active: under way now.
    latencies: (lower edge in ms, count) of the bins that are not empty; of answers alone, each a whole request from its
    last byte in to its answer's last byte.
    """

    attempts: int = 0
    failed: int = 0
    given_up: int = 0
    active: int = 0
    latencies: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """What one gateway says. `epoch` changes when it starts anew, and its counts begin at zero again.

    `at_s` is when it was asked and `began_s` when it started, both Unix time.
    """

    epoch: str
    at_s: float
    by_series: Mapping[Series, SeriesCounts] = field(default_factory=dict)
    began_s: float = 0.0


Sample: TypeAlias = "Mapping[str, Counters]"
"""What all gateways that answered said of one model, by gateway."""


class InFlightSample(NamedTuple):
    """How many attempts of (stable, candidate) had ended at one gateway, and how many were under way."""

    at_s: float
    ended: tuple[float, float]
    active: tuple[float, float]


class InFlight(NamedTuple):
    """What is known of one gateway's attempts under way: how many of (stable, candidate) are in latencies before their
    end, because they hang, and recent moments, the oldest first."""

    charged: tuple[float, float] = (0.0, 0.0)
    moments: tuple[InFlightSample, ...] = ()


@dataclass(frozen=True, slots=True)
class HungRequests:
    """What has to be known from look to look, so that an attempt that hangs is in latencies once; by gateway."""

    gateways: tuple[tuple[str, InFlight], ...] = ()

    def of(self, gateway: str) -> InFlight:
        """Return what is known of a gateway; plain tuples do as well, as JSON gives them."""
        for name, (charged, moments) in self.gateways:
            if name == gateway:
                return InFlight(charged, tuple(InFlightSample(*moment) for moment in moments))
        return InFlight()
