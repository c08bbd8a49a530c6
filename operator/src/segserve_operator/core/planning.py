"""From roles to the world they ask for, and the ordered actions that bring it about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_builder.names import network_alias
from segserve_operator.core.conditions import status_of
from segserve_operator.core.observed import MAIN
from segserve_operator.core.roles import assigned_model, next_roles, settling
from segserve_operator.core.traffic import Route, Share, TrafficPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve_operator.core.observed import ModelObserved, ModelStatus, Observed, Roles


@dataclass(frozen=True, slots=True)
class SaveRevision:
    """Record what a revision is made of, before anything depends on it."""

    revision: str
    assigned: AssignedModel


@dataclass(frozen=True, slots=True)
class SaveStatus:
    """Write a model's status, its roles above all: intent before effect."""

    model: str
    status: ModelStatus


@dataclass(frozen=True, slots=True)
class StartGroup:
    """Start whichever of a group's processes does not run."""

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
class Forget:
    """Remove the last trace of a deleted model."""

    model: str


@dataclass(frozen=True, slots=True)
class DropRevision:
    """Remove the record of a revision that has no role."""

    revision: str


Action: TypeAlias = SaveRevision | SaveStatus | StartGroup | Assign | SetTraffic | StopGroup | Forget | DropRevision


@dataclass(frozen=True, slots=True)
class Desired:
    """The world as it should be now. Groups that are not named here end."""

    statuses: Mapping[str, ModelStatus]
    revisions: Mapping[str, AssignedModel]
    groups: Mapping[str, Assignment]
    traffic: TrafficPlan
    forgotten: tuple[str, ...]


def decide(world: Observed) -> Desired:
    """Return the world as it should be, from the world as it is."""
    roles = {model.name: next_roles(model, world) for model in world.models}
    groups = _assignments(roles, world)
    held = {name for name in roles if any(group.holds(name) for group in world.groups.values())}
    forgotten = tuple(model.name for model in world.models if model.deleting and model.name not in held)
    statuses = {model.name: status_of(model, roles[model.name], world) for model in world.models}
    return Desired(statuses, _records(roles, world), groups, _traffic(roles, world), forgotten)


def plan(desired: Desired, world: Observed) -> Iterator[Action]:
    """Yield the writes that turn the world into the desired one, in the order in which they are safe.

    Intent is recorded before effect, servers hold a revision before requests go to it, and what nobody calls
    any more is removed last. Nothing is yielded where nothing differs.
    """
    yield from _intents(desired, world)
    redirect = [SetTraffic(desired.traffic)] if world.traffic.plan != desired.traffic else []
    # A server that starts again knows no model yet, so requests must not find it before the gateway has heard.
    restarts = any(name in desired.groups and not group.running for name, group in world.groups.items())
    first = redirect if restarts and world.traffic.plan is not None else []
    yield from first
    yield from _group_actions(desired, world)
    yield from () if first else redirect
    yield from map(StopGroup, sorted(world.groups.keys() - desired.groups.keys()))
    yield from map(Forget, desired.forgotten)
    yield from map(DropRevision, sorted(world.revisions.keys() - desired.revisions.keys()))


def _group_actions(desired: Desired, world: Observed) -> Iterator[Action]:
    for group, assignment in desired.groups.items():
        if group not in world.groups or not world.groups[group].running:
            yield StartGroup(group)
        if group not in world.groups or world.groups[group].assignment != assignment:
            yield Assign(group, assignment)


def _intents(desired: Desired, world: Observed) -> Iterator[Action]:
    for revision, assigned in desired.revisions.items():
        if world.revisions.get(revision) != assigned:
            yield SaveRevision(revision, assigned)
    for model in world.models:
        if desired.statuses[model.name] != model.status:
            yield SaveStatus(model.name, desired.statuses[model.name])


def _wanted_holdings(roles: Mapping[str, Roles]) -> set[tuple[str, str, str]]:
    """Return (group, model, revision) for all that the roles ask to be loaded."""
    held = {(group, model, revision) for model, r in roles.items() for group, revision in r.held()}
    moving = {(MAIN, model, r.stable.revision) for model, r in roles.items() if r.stable is not None and settling(r)}
    return held | moving


def _assignments(roles: Mapping[str, Roles], world: Observed) -> dict[str, Assignment]:
    holdings: dict[str, dict[str, AssignedModel]] = {MAIN: {}}
    models = {model.name: model for model in world.models}
    for group, name, revision in sorted(_wanted_holdings(roles)):
        told = assigned_model(revision, models[name], world)
        if told is not None:
            holdings.setdefault(group, {})[name] = told
    for name, observed in world.groups.items():
        for told in observed.assignment.models:
            if not world.drained(told.model, name):
                # Requests may still arrive: what serves stays until the gateway has sent the last one elsewhere.
                present = holdings.setdefault(name, {}).get(told.model)
                if present is None or present.revision != told.revision:
                    holdings[name][told.model] = told
    return {group: Assignment(models=tuple(held[name] for name in sorted(held))) for group, held in holdings.items()}


def _records(roles: Mapping[str, Roles], world: Observed) -> dict[str, AssignedModel]:
    records: dict[str, AssignedModel] = {}
    for model in world.models:
        for revision in roles[model.name].revisions():
            told = assigned_model(revision, model, world)
            if told is not None:
                records[revision] = told
    loaded = {told.revision: told for group in world.groups.values() for told in group.assignment.models}
    return records | {name: world.revisions[name] for name in loaded if name in world.revisions and name not in records}


def _traffic(roles: Mapping[str, Roles], world: Observed) -> TrafficPlan:
    routes = [_route(model, roles[model.name], world) for model in world.models]
    main = world.groups.get(MAIN)
    return TrafficPlan(
        routes=tuple(sorted((r for r in routes if r is not None), key=lambda route: route.model)),
        servers=(main.endpoint,) if main is not None else (),
    )


def _route(model: ModelObserved, roles: Roles, world: Observed) -> Route | None:
    stable = roles.stable
    if stable is None:
        return None
    group = world.groups.get(stable.group)
    report = group.report(stable.revision) if group else None
    endpoints = (group.endpoint,) if group is not None and group.proved(stable.revision) else ()
    told = assigned_model(stable.revision, model, world)
    if told is None:
        return None
    limit = told.pipeline.runtime.max_requests
    return Route(
        model=model.name,
        shares=(Share(stable.group, stable.revision, 100, endpoints, limit),),
        steps=report.steps if report is not None else (),
        exposed=(network_alias(model.name),) if "network" in told.expose else (),
    )
