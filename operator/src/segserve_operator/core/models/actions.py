"""What a pass may do: small values, each one idempotent write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_operator.core.models.events import Event
from segserve_operator.core.models.observed import ModelStatus, PoolStatus
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import TrafficPlan


@dataclass(frozen=True, slots=True)
class SaveRevision:
    """Record what a revision is made of, before anything depends on it."""

    revision: str
    assigned: AssignedModel


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Let people know what happens to a model; told again, it is the same notice."""

    model: str
    event: Event


@dataclass(frozen=True, slots=True)
class SaveStatus:
    """Write a model's status, its roles above all: intent before effect."""

    model: str
    status: ModelStatus


@dataclass(frozen=True, slots=True)
class StartGroup:
    """Start what of a group's servers does not run, or put right what differs from what it should be."""

    group: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Tell a group's agents what to hold."""

    group: str
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class SetTraffic:
    """Tell the gateway where requests go."""

    plan: TrafficPlan


@dataclass(frozen=True, slots=True)
class StopGroup:
    """End a group's servers, whose models nobody calls any more."""

    group: str


@dataclass(frozen=True, slots=True)
class SaveRollout:
    """Write a rollout's record: what was decided, and what it was decided from."""

    record: Record


@dataclass(frozen=True, slots=True)
class SaveBundle:
    """Keep what tells why a rollout was rolled back, before the candidate's servers are gone."""

    record: Record
    group: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell those whom the pool names what became of a rollout; `url` is where the model answers."""

    model: str
    state: RolloutState
    events: tuple[Event, ...]
    url: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the last trace of a deleted model."""

    model: str


@dataclass(frozen=True, slots=True)
class DropRevision:
    """Remove the record of a revision that has no role."""

    revision: str


@dataclass(frozen=True, slots=True)
class EmitPoolEvent:
    """Let people know what happens to the pool."""

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
    | SaveBundle
    | Announce
    | StopGroup
    | Forget
    | DropRevision
    | EmitPoolEvent
    | SavePoolStatus
)
Action: TypeAlias = Intent | Effect
