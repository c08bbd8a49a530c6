"""From roles to the world they ask for, and the ordered actions that bring it about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_builder.names import network_alias
from segserve_operator.core.conditions import status_of
from segserve_operator.core.notices import notices
from segserve_operator.core.pool import pool_notices, pool_status
from segserve_operator.core.roles import assigned_model, next_roles, settling
from segserve_operator.core.traffic import Route, Share, TrafficPlan
from segserve_operator.core.turns import turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve_operator.core.notices import Notice
    from segserve_operator.core.observed import ModelObserved, ModelStatus, Observed, PoolStatus, Roles


@dataclass(frozen=True, slots=True)
class SaveRevision:
    """Record what a revision is made of, before anything depends on it."""

    revision: str
    assigned: AssignedModel


@dataclass(frozen=True, slots=True)
class Tell:
    """Let people know what happens to a model; told again, it is the same notice."""

    model: str
    notice: Notice


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
class Forget:
    """Remove the last trace of a deleted model."""

    model: str


@dataclass(frozen=True, slots=True)
class DropRevision:
    """Remove the record of a revision that has no role."""

    revision: str


@dataclass(frozen=True, slots=True)
class TellOfPool:
    """Let people know what happens to the pool."""

    notice: Notice


@dataclass(frozen=True, slots=True)
class SavePoolStatus:
    """Write the pool's status."""

    status: PoolStatus


Intent: TypeAlias = SaveRevision | Tell | SaveStatus
Effect: TypeAlias = StartGroup | Assign | SetTraffic | StopGroup | Forget | DropRevision | TellOfPool | SavePoolStatus
Action: TypeAlias = Intent | Effect


@dataclass(frozen=True, slots=True)
class Desired:
    """The world as it should be now. Groups that are not named here end."""

    statuses: Mapping[str, ModelStatus]
    revisions: Mapping[str, AssignedModel]
    groups: Mapping[str, Assignment]
    traffic: TrafficPlan | None
    forgotten: tuple[str, ...]
    pool: PoolStatus | None


def decide(world: Observed, unrecorded: frozenset[str] = frozenset()) -> Desired:
    """Return the world as it should be, from the world as it is.

    The models `unrecorded` could not have their roles written down: they stay as they are.
    """
    turn = turns(world)
    roles = {
        model.name: model.roles if model.name in unrecorded else next_roles(model, world, turn)
        for model in world.models
    }
    held = {name for name in roles if any(group.holds(name) for group in world.groups.values())}
    forgotten = tuple(model.name for model in world.models if model.deleting and model.name not in held)
    return Desired(
        statuses={model.name: status_of(model, roles[model.name], world) for model in world.models},
        revisions=_records(roles, world),
        groups=_assignments(roles, world) if world.pool is not None else {},
        traffic=_traffic(roles, world) if world.pool is not None else None,
        forgotten=forgotten,
        pool=pool_status(world),
    )


def intents(desired: Desired, world: Observed) -> dict[str, list[Intent]]:
    """Return by model what has to be written down, in this order, before any effect of it."""
    found: dict[str, list[Intent]] = {}
    owners = {revision: assigned.model for revision, assigned in desired.revisions.items()}
    for revision, assigned in desired.revisions.items():
        if world.revisions.get(revision) != assigned:
            found.setdefault(owners[revision], []).append(SaveRevision(revision, assigned))
    for model in world.models:
        status = desired.statuses[model.name]
        if status != model.status:
            told = (Tell(model.name, notice) for notice in notices(model.status, status))
            found.setdefault(model.name, []).extend([*told, SaveStatus(model.name, status)])
    return found


def effects(desired: Desired, world: Observed) -> Iterator[Effect]:
    """Yield the writes that turn the world into the desired one, in the order in which they are safe.

    Servers hold a revision before requests go to it, and what nobody calls any more is removed last. Nothing is
    yielded where nothing differs.
    """
    redirect: list[Effect] = []
    if desired.traffic is not None and (world.traffic.plan != desired.traffic or not world.traffic.intact):
        redirect = [SetTraffic(desired.traffic)]
    # A server that starts again knows no model yet, so requests must not find it before the gateway has heard.
    restarts = any(name in desired.groups and not group.intact for name, group in world.groups.items())
    first = redirect if restarts and world.traffic.plan is not None else []
    yield from first
    yield from _group_effects(desired, world)
    yield from () if first else redirect
    yield from map(StopGroup, sorted(world.groups.keys() - desired.groups.keys()))
    yield from map(Forget, desired.forgotten)
    yield from map(DropRevision, sorted(world.revisions.keys() - desired.revisions.keys()))
    if world.pool is not None and desired.pool is not None and desired.pool != world.pool.status:
        yield from map(TellOfPool, pool_notices(world.pool.status, desired.pool))
        yield SavePoolStatus(desired.pool)


def _group_effects(desired: Desired, world: Observed) -> Iterator[Effect]:
    for group, assignment in desired.groups.items():
        if group not in world.groups or not world.groups[group].intact:
            yield StartGroup(group)
        told = world.groups.get(group)
        if told is None or not told.written or told.assignment != assignment:
            yield Assign(group, assignment)


def _wanted_holdings(roles: Mapping[str, Roles], main: str) -> set[tuple[str, str, str]]:
    """Return (group, model, revision) for all that the roles ask to be loaded."""
    held = {(group, model, revision) for model, r in roles.items() for group, revision in r.held()}
    moving = {
        (main, model, r.stable.revision) for model, r in roles.items() if r.stable is not None and settling(r, main)
    }
    return held | moving


def _assignments(roles: Mapping[str, Roles], world: Observed) -> dict[str, Assignment]:
    holdings: dict[str, dict[str, AssignedModel]] = {world.main: {}}
    models = {model.name: model for model in world.models}
    for group, name, revision in sorted(_wanted_holdings(roles, world.main)):
        told = assigned_model(revision, models[name], world)
        if told is not None:
            holdings.setdefault(group, {})[name] = told
    for name, observed in world.groups.items():
        for told in observed.assignment.models:
            if not world.traffic.drained(told.model, name):
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
    main = world.groups.get(world.main)
    return TrafficPlan(
        routes=tuple(sorted((r for r in routes if r is not None), key=lambda route: route.model)),
        servers=tuple(server.endpoint for server in main.servers or main.leaving) if main is not None else (),
    )


def _route(model: ModelObserved, roles: Roles, world: Observed) -> Route | None:
    stable = roles.stable
    told = assigned_model(stable.revision, model, world) if stable is not None else None
    if stable is None or told is None:
        return None
    group = world.groups.get(stable.group)
    report = group.report(stable.revision) if group is not None else None
    shares = [_share(stable.group, told, 100, world)]
    for waiting in (roles.candidate, roles.previous):
        other = assigned_model(waiting.revision, model, world) if waiting is not None else None
        if waiting is None or waiting.group is None or other is None:
            continue
        # Known beforehand, so that to send it requests takes a weight and nothing else.
        if world.complete(waiting.group, waiting.revision):
            shares.append(_share(waiting.group, other, 0, world))
    return Route(
        model=model.name,
        shares=tuple(shares),
        steps=report.steps if report is not None else (),
        exposed=(network_alias(model.name),) if "network" in told.expose else (),
    )


def _share(group: str, told: AssignedModel, weight: int, world: Observed) -> Share:
    endpoints = world.groups[group].endpoints(told.revision) if group in world.groups else ()
    return Share(group, told.revision, weight, endpoints, told.pipeline.runtime.max_requests)
