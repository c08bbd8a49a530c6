"""One level-based pass: observe the world, decide, apply. Which event woke it never matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from segserve_operator.core.observed import Observed
from segserve_operator.core.planning import (
    Action,
    Assign,
    DropRevision,
    Forget,
    SaveRevision,
    SaveStatus,
    SetTraffic,
    StartGroup,
    StopGroup,
    decide,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from segserve_builder.agent.protocol import AssignedModel, Assignment
    from segserve_operator.core.observed import GroupObserved, ModelObserved, ModelStatus
    from segserve_operator.core.traffic import TrafficPlan, TrafficState


class Store(Protocol):
    """Where resources live. Every write is idempotent."""

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model with its spec and status."""
        ...

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name."""
        ...

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Record what a revision is made of."""
        ...

    async def drop_revision(self, revision: str) -> None:
        """Remove a record; one that is gone already is fine."""
        ...

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status; a model that is gone is fine."""
        ...

    async def forget(self, model: str) -> None:
        """Remove a deleted model for good."""
        ...


class Fleet(Protocol):
    """The servers, in groups. Every write is idempotent."""

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group with what its agents report."""
        ...

    async def start(self, group: str) -> None:
        """Start whichever of a group's processes does not run."""
        ...

    async def assign(self, group: str, assignment: Assignment) -> None:
        """Tell a group's agents what to hold."""
        ...

    async def stop(self, group: str) -> None:
        """End a group's processes and remove all of its files and shared memory; it is called until it is gone."""
        ...


class Traffic(Protocol):
    """The gateway."""

    @property
    def url(self) -> str:
        """Where clients call it."""
        ...

    async def observe(self) -> TrafficState:
        """Return the plan that it follows and the requests in flight."""
        ...

    async def apply(self, plan: TrafficPlan) -> None:
        """Make it follow a plan; returns once it does, and no request fails on the way."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    """The ports of one platform and the pass over them. `clock` returns Unix time in seconds."""

    store: Store
    fleet: Fleet
    traffic: Traffic
    clock: Callable[[], float]

    async def observe(self) -> Observed:
        """Read the world into one immutable value."""
        return Observed(
            # Kubernetes' times are whole seconds: a finer one would come back changed from a status.
            now_s=float(int(self.clock())),
            gateway_url=self.traffic.url,
            models=await self.store.models(),
            revisions=await self.store.revisions(),
            groups=await self.fleet.groups(),
            traffic=await self.traffic.observe(),
        )

    async def run_once(self) -> tuple[Action, ...]:
        """Make one pass and return the actions it took, none where the world was as wanted."""
        world = await self.observe()
        actions = tuple(plan(decide(world), world))
        for action in actions:
            await self._apply(action)
        return actions

    async def _apply(self, action: Action) -> None:
        match action:
            case SaveRevision(revision, assigned):
                await self.store.save_revision(revision, assigned)
            case SaveStatus(model, status):
                await self.store.save_status(model, status)
            case StartGroup(group):
                await self.fleet.start(group)
            case Assign(group, assignment):
                await self.fleet.assign(group, assignment)
            case SetTraffic(traffic_plan):
                await self.traffic.apply(traffic_plan)
            case StopGroup(group):
                await self.fleet.stop(group)
            case Forget(model):
                await self.store.forget(model)
            case DropRevision(revision):
                await self.store.drop_revision(revision)
