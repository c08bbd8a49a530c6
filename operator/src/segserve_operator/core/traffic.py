"""Which group answers which share of a model's requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one Triton server listens."""

    host: str
    http_port: int
    grpc_port: int


@dataclass(frozen=True, slots=True)
class Share:
    """A group and the revision it holds get `weight` of 100 requests.

    `endpoints` are the group's servers whose agents report that very revision loaded and proved; with none,
    its requests get 503. `max_requests` may be in flight at once over each protocol; more get 503 at once.
    """

    group: str
    revision: str
    weight: int
    endpoints: tuple[Endpoint, ...] = ()
    max_requests: int = 1024


@dataclass(frozen=True, slots=True)
class Route:
    """A model's requests, split over its shares; the weights sum to 100.

    `steps` are the names of the composing models that the heaviest share's group holds; clients such as
    perf_analyzer ask for their configuration. `exposed` names the bare networks that are public.
    """

    model: str
    shares: tuple[Share, ...]
    steps: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        total = sum(share.weight for share in self.shares)
        if total != 100 or any(share.weight < 0 for share in self.shares):
            weights = {share.group: share.weight for share in self.shares}
            raise ValueError(f"weights of {self.model!r} must be positive and sum to 100, got {weights}")


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """All that a gateway is told: routes by model, and the servers that answer questions about no model."""

    routes: tuple[Route, ...] = ()
    servers: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class TrafficState:
    """What a gateway does now: the plan it has taken over (None before the first), and requests in flight.

    `active` counts requests under way by (model, group).
    """

    plan: TrafficPlan | None
    active: Mapping[tuple[str, str], int] = field(default_factory=dict)
