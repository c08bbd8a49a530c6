"""The effects that bring the desired world about: their order, and what the failure of one withholds.

A failed effect holds only what depends on it. Weights depend on nothing that may be refused: they come first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache

from segserve_operator.core.advance.advance import is_due
from segserve_operator.core.models.actions import (
    Announce,
    AnnounceDrift,
    Assign,
    DropRevision,
    Effect,
    EmitPoolEvent,
    Forget,
    SavePoolStatus,
    SaveRollout,
    SetTraffic,
    StartGroup,
    StopGroup,
)
from segserve_operator.core.models.events import drift_events
from segserve_operator.core.models.planning import DesiredState, events_of_rollout
from segserve_operator.core.models.pool import pool_events
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.core.world.observed import Observed

Stage = tuple[tuple[Effect, ...], ...]
"""Effects that may be applied at the same time, in sequences: a sequence's effects are applied one after the other."""


def effects(desired: DesiredState, world: Observed) -> Iterator[Stage]:
    """Yield the writes that turn the world into the desired one, in stages; each begins once the former has ended.

    Gateways stop using a server before it is restarted, servers load a revision before it gets requests, and what no
    longer gets requests is removed last. Nothing is yielded if nothing differs.
    """
    early, late = _traffic_effects(desired, world)
    removals: tuple[Effect, ...] = (
        *map(StopGroup, sorted(world.groups.keys() - desired.groups.keys())),
        *map(DropRevision, sorted(world.revisions.keys() - desired.revisions.keys())),
    )
    stages: tuple[Iterable[tuple[Effect, ...]], ...] = (
        early,
        _group_effects(desired, world),
        late,
        _record_effects(desired, world),
        ((removal,) for removal in removals),
        # Last: records without a model are kept for one that a restore brings.
        ((Forget(model),) for model in desired.forgotten),
        _pool_effects(desired, world),
    )
    yield from filter(None, map(tuple, stages))


def permitted(effect: Effect, failed: Collection[Effect], world: Observed) -> Effect | None:
    """Return what of an effect may be applied after those that `failed` in this pass, None if it has to wait."""
    unfollowed = [each.plan for each in failed if isinstance(each, SetTraffic) and each.plan != world.traffic.plan]
    match effect:
        case SetTraffic(plan):
            if any(isinstance(each, SetTraffic) for each in failed):
                return None
            unassigned = {each.group for each in failed if isinstance(each, Assign)}
            part = _servable(plan, unassigned, world) if unassigned else plan
            return SetTraffic(part) if part == plan or part != world.traffic.plan else None
        case StartGroup(group):
            # A restarted server has no models yet.
            used = _endpoints(world.traffic.plan, group)
            return None if any(used - _endpoints(plan, group) for plan in unfollowed) else effect
        case Forget(model):
            routes = world.traffic.plan.routes if world.traffic.plan is not None else ()
            return None if unfollowed and any(route.model == model for route in routes) else effect
        case _:
            return effect


def _traffic_effects(
    desired: DesiredState, world: Observed
) -> tuple[list[tuple[Effect, ...]], list[tuple[Effect, ...]]]:
    """Return what gateways may follow before anything else is written, and what only after groups got assignments."""
    plan, present = desired.traffic, world.traffic.plan
    if plan is None:
        return [], []
    if present is None:
        return [], [(SetTraffic(plan),)]
    first = plan if plan == present else _servable(plan, desired.groups.keys(), world)
    early: list[tuple[Effect, ...]] = [(SetTraffic(first),)] if first != present or not world.traffic.intact else []
    return early, [(SetTraffic(plan),)] if first != plan else []


def _servable(plan: TrafficPlan, unassigned: Collection[str], world: Observed) -> TrafficPlan:
    """Return a plan without what needs an assignment that the groups `unassigned` have not got yet.

    A route that needs one stays as it is, without servers that no longer answer.
    """
    former = {route.model: route for route in world.traffic.plan.routes} if world.traffic.plan is not None else {}

    @cache
    def assigned(name: str) -> frozenset[tuple[str, str]]:
        group = world.groups.get(name)
        held = group.assignment.models if group is not None and group.written else ()
        return frozenset((each.model, each.revision) for each in held)

    def waits(share: Share, route: Route) -> bool:
        known = former[route.model].shares if route.model in former else ()
        if share.group not in unassigned or not share.endpoints:
            return False
        if any((each.group, each.revision) == (share.group, share.revision) for each in known):
            return False
        return (route.model, share.revision) not in assigned(share.group)

    def servable(route: Route) -> Route:
        missing = [share for share in route.shares if waits(share, route)]
        if not missing:
            return route
        if route.model not in former:
            shares = (replace(share, endpoints=()) if share in missing else share for share in route.shares)
            return replace(route, shares=tuple(shares))
        present = former[route.model]
        return replace(present, shares=tuple(_with_present_servers(share, world) for share in present.shares))

    return replace(plan, routes=tuple(map(servable, plan.routes)))


def _with_present_servers(share: Share, world: Observed) -> Share:
    group = world.groups.get(share.group)
    return replace(share, endpoints=group.endpoints(share.revision) if group is not None else ())


def _endpoints(plan: TrafficPlan | None, group: str) -> set[Endpoint]:
    shares = (share for route in plan.routes for share in route.shares) if plan is not None else ()
    return {endpoint for share in shares if share.group == group for endpoint in share.endpoints}


def _group_effects(desired: DesiredState, world: Observed) -> Iterator[tuple[Effect, ...]]:
    for group, assignment in desired.groups.items():
        observed, replicas = world.groups.get(group), desired.replicas[group]
        sequence: list[Effect] = []
        if observed is None or not observed.intact or observed.replicas != replicas:
            sequence.append(StartGroup(group, replicas))
        if observed is None or not observed.written or observed.assignment != assignment:
            sequence.append(Assign(group, assignment))
        if sequence:
            yield tuple(sequence)


def _record_effects(desired: DesiredState, world: Observed) -> Iterator[tuple[Effect, ...]]:
    """Yield the writes of records: immediately after decisions, otherwise at intervals."""
    for record in {**world.records, **desired.records}.values():
        if is_due(record, world, active=record.name in desired.records):
            yield (SaveRollout(record),)
    for model in world.models:
        status = desired.statuses[model.name]
        events = events_of_rollout(model, desired) if status.rollout != model.status.rollout else ()
        if events and status.rollout is not None:
            yield (Announce(model.name, status.rollout, events, status.url),)
        drift = desired.drifts.get(model.name)
        if drift is not None:
            for event in drift_events(model.status.conditions, status.conditions):
                yield (AnnounceDrift(model.name, drift.revision, event, drift.found, status.url),)


def _pool_effects(desired: DesiredState, world: Observed) -> Iterator[tuple[Effect, ...]]:
    if world.pool is not None and desired.pool is not None and desired.pool != world.pool.status:
        yield (*map(EmitPoolEvent, pool_events(world.pool.status, desired.pool)), SavePoolStatus(desired.pool))
