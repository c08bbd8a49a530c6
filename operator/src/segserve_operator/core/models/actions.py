"""Actions of a pass: small values, each one idempotent write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_operator.core.drift.watch import DriftedHistogram
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import TrafficPlan
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import ModelStatus, PoolStatus


@dataclass(frozen=True, slots=True)
class SaveRevision:
    """Write the record of a revision, before anything depends on it."""

    revision: str
    assigned: AssignedModel


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Emit an event about a model; repeated, it is the same event."""

    model: str
    event: Event


@dataclass(frozen=True, slots=True)
class SaveStatus:
    """Write a model's status. It contains the roles, so the intent is recorded before any effect."""

    model: str
    status: ModelStatus


@dataclass(frozen=True, slots=True)
class StartGroup:
    """Give a group `replicas` servers: start servers that do not run, and correct what differs from the template."""

    group: str
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Assign:
    """Write the assignment that a group's agents follow."""

    group: str
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class SetTraffic:
    """Put a traffic plan into force at the gateway."""

    plan: TrafficPlan


@dataclass(frozen=True, slots=True)
class StopGroup:
    """Stop a group's servers, whose models no longer receive requests."""

    group: str


@dataclass(frozen=True, slots=True)
class SaveRollout:
    """Write a rollout's record: its decisions and their evidence."""

    record: Record


@dataclass(frozen=True, slots=True)
class Announce:
    """Send the events of a rollout to the pool's notification targets; `url` is where the model answers."""

    model: str
    state: RolloutState
    events: tuple[Event, ...]
    url: str


@dataclass(frozen=True, slots=True)
class AnnounceDrift:
    """Send that a model's stable revision drifts, with the histograms that do, or that it does not any more."""

    model: str
    revision: str
    event: Event
    histograms: tuple[DriftedHistogram, ...]
    url: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove a deleted model permanently."""

    model: str


@dataclass(frozen=True, slots=True)
class DropRevision:
    """Delete the record of a revision that has no role."""

    revision: str


@dataclass(frozen=True, slots=True)
class EmitPoolEvent:
    """Emit an event about the pool."""

    event: Event


@dataclass(frozen=True, slots=True)
class SavePoolStatus:
    """Write the pool's status."""

    status: PoolStatus


Intent: TypeAlias = SaveRevision | EmitEvent | SaveStatus
Effect: TypeAlias = (
    StartGroup
    | Assign
    | SetTraffic
    | SaveRollout
    | Announce
    | AnnounceDrift
    | StopGroup
    | Forget
    | DropRevision
    | EmitPoolEvent
    | SavePoolStatus
)
Action: TypeAlias = Intent | Effect
