"""The desired world that follows from the roles, and the ordered actions that bring it about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_builder.spec.names import network_alias
from segserve_operator.api.rollout_policy import MaskAgreementGate
from segserve_operator.core.advance.advance import RolloutUpdate, unchanged
from segserve_operator.core.advance.case import groups_of
from segserve_operator.core.advance.explanations import SIGNALS
from segserve_operator.core.advance.sizes import sizes, with_sizes
from segserve_operator.core.advance.verdicts.golden import with_scoring
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.failure import FILE_DAMAGED, STATUS_UNREADABLE
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.models.actions import (
    EmitEvent,
    Intent,
    SaveRevision,
    SaveStatus,
)
from segserve_operator.core.models.capture import capture_rule
from segserve_operator.core.models.conditions import status_of
from segserve_operator.core.models.drift import drift_watches, with_counting
from segserve_operator.core.models.events import rollout_events, status_events
from segserve_operator.core.models.pool import pool_status, slots
from segserve_operator.core.models.rest import Rest, Settled, is_at_rest
from segserve_operator.core.models.roles import UNLOAD_S, assigned_model, next_roles, record_of, settling, split
from segserve_operator.core.models.update import spread, with_template
from segserve_operator.core.rollout.batches import answered
from segserve_operator.core.rollout.decisions import decide_all
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import (
    RESTART_S,
    AccessRule,
    Endpoint,
    Mirror,
    Route,
    RouteAffinity,
    RouteLimits,
    Share,
    TrafficPlan,
)
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import (
    Candidate,
    ModelObserved,
    ModelStatus,
    Observed,
    PoolStatus,
    RoleHolder,
    Roles,
    SloWatch,
)
from segserve_operator.core.world.quorum import answers, prevailing_report, suffices
from segserve_operator.core.world.slo import watches

MAX_NAMES_BYTES: Final = 4096
"""Names of a revision's classes that a traffic plan has, in all: a plan has to fit into a few ConfigMaps."""
_ABORTED: Final = SIGNALS[Signal.ABORT][0]


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The desired world. Groups that are not named here are stopped; `replicas` is their number of servers.

    `records` are the rollouts' records after this pass, `checks` the checks to run, `answers` the events that answer
    requests by model; `watches` and `drifts` are kept by model. `at_rest` says whether nothing becomes due as time
    passes: the decision stays as it is until something else changes. `rest` are the models that are settled.
    """

    statuses: Mapping[str, ModelStatus]
    revisions: Mapping[str, AssignedModel]
    groups: Mapping[str, Assignment]
    traffic: TrafficPlan | None
    forgotten: tuple[str, ...]
    pool: PoolStatus | None
    records: Mapping[str, Record]
    checks: tuple[Check, ...]
    answers: Mapping[str, tuple[Event, ...]]
    watches: Mapping[str, SloWatch]
    drifts: Mapping[str, DriftWatch]
    replicas: Mapping[str, int]
    at_rest: bool
    rest: Rest


def desired_state(
    world: Observed, unrecorded: frozenset[str] = frozenset(), former: Rest | None = None
) -> DesiredState:
    """Return the desired world, from the observed one.

    The models `unrecorded` stay as they are, because their roles could not be written. What a `former` pass found
    settled is not decided again while all that it follows from is the same; the result is equal without it.
    """
    seen, world = world, with_sizes(with_template(world))
    drifts, free = drift_watches(world.models, world), slots(world)
    still = former.still(world, drifts) if former is not None else {}
    changing = [model for model in world.models if model.name not in unrecorded and model.name not in still]
    decided = answered({model.name: next_roles(model, world, free) for model in changing}, decide_all)
    decided |= {m.name: (m.roles, unchanged(m, world)) for m in world.models if m.name not in decided}
    roles = {model.name: decided[model.name][0] for model in world.models}
    updates = {model.name: decided[model.name][1] for model in world.models}
    slo_watches = watches(world.models, world)
    held = {name for name in roles if any(group.holds(name) for group in world.groups.values())}
    smaller = sizes(roles, {name: update.state for name, update in updates.items()}, world)
    groups, replicas = dict[str, Assignment](), dict[str, int]()
    if world.pool is not None:
        groups, replicas = spread(_assignments(roles, drifts, world), smaller, world.pool, seen.groups)
    # A server that does not unload a model must not prevent its end: the server goes on trying.
    assigned = {each.model for assignment in groups.values() for each in assignment.models}
    overdue = {model.name for model in world.models if world.now_s >= model.deleted_s + UNLOAD_S} - assigned
    forgotten = tuple(m.name for m in world.models if m.deleting and (m.name not in held or m.name in overdue))
    statuses = {
        m.name: m.status
        if m.name in still
        else status_of(m, roles[m.name], updates[m.name], slo_watches, drifts, world)
        for m in world.models
    }
    traffic = _traffic(roles, updates, still, world) if world.pool is not None else None
    kept = (m.name for m in world.models if statuses[m.name] == m.status and not updates[m.name].records)
    return DesiredState(
        statuses=statuses,
        revisions=_records(roles, world),
        groups=groups,
        traffic=traffic,
        forgotten=forgotten,
        pool=pool_status(world),
        records={record.name: record for each in updates.values() for record in each.records},
        checks=tuple(check for each in updates.values() for check in each.checks),
        answers={name: update.events for name, update in updates.items() if update.events},
        watches=slo_watches,
        drifts=drifts,
        replicas=replicas,
        at_rest=is_at_rest(seen),
        rest=Rest.of(world, kept, {route.model: route for route in traffic.routes} if traffic is not None else {}),
    )


def intents(desired: DesiredState, world: Observed) -> dict[str, list[Intent]]:
    """Return by model what must be written, in this order, before any effect."""
    intents_by_model: dict[str, list[Intent]] = {}
    owners = {revision: assigned.model for revision, assigned in desired.revisions.items()}
    for revision, assigned in desired.revisions.items():
        if world.revisions.get(revision) != assigned:
            intents_by_model.setdefault(owners[revision], []).append(SaveRevision(revision, assigned))
    for model in world.models:
        status = desired.statuses[model.name]
        if status != model.status:
            about = (*desired.answers.get(model.name, ()), *status_events(model.status, status))
            events = (EmitEvent(model.name, event) for event in (*about, *events_of_rollout(model, desired)))
            intents_by_model.setdefault(model.name, []).extend([*events, SaveStatus(model.name, status)])
    return intents_by_model


def events_of_rollout(model: ModelObserved, desired: DesiredState) -> tuple[Event, ...]:
    """Return the events of what a pass decides of a model's rollout."""
    state = desired.statuses[model.name].rollout
    record = desired.records.get(state.rollout) if state is not None else None
    return rollout_events(model.status.rollout, state, record.verdicts if record is not None else ())


def _assignments(
    roles: Mapping[str, Roles], drifts: Mapping[str, DriftWatch], world: Observed
) -> dict[str, Assignment]:
    holdings: dict[str, dict[str, AssignedModel]] = {world.main: {}}
    models = {model.name: model for model in world.models}
    wanted = {(group, model, revision) for model, r in roles.items() for group, revision in r.loaded_revisions()}
    wanted |= {
        (world.main, model, r.stable.revision)
        for model, r in roles.items()
        if r.stable is not None and settling(r, world.main)
    }
    for group, name, revision in sorted(wanted):
        assigned = assigned_model(revision, models[name], world)
        if assigned is not None:
            scored = with_scoring(assigned, group, models[name], world)
            counted = with_counting(scored, group, models[name], world)
            holdings.setdefault(group, {})[name] = counted
    for name, observed in world.groups.items():
        for assigned in observed.assignment.models:
            if not world.traffic.drained(assigned.model, name):
                # Requests may still arrive: the revision stays loaded until the gateway sends all of them elsewhere.
                present = holdings.setdefault(name, {}).get(assigned.model)
                if present is None or present.revision != assigned.revision:
                    holdings[name][assigned.model] = assigned
    return {group: Assignment(models=tuple(held[name] for name in sorted(held))) for group, held in holdings.items()}


def _records(roles: Mapping[str, Roles], world: Observed) -> dict[str, AssignedModel]:
    records: dict[str, AssignedModel] = {}
    for model in world.models:
        for revision in roles[model.name].revisions():
            assigned = record_of(revision, model, world)
            if assigned is not None:
                records[revision] = assigned
    # In a restore records come before their model, or before its pool. A deleted model's records end with it.
    decided = frozenset(model.name for model in world.models if world.pool is not None or model.deleting)
    records |= {name: assigned for name, assigned in world.revisions.items() if assigned.model not in decided}
    loaded = {assigned.revision: assigned for group in world.groups.values() for assigned in group.assignment.models}
    return records | {name: world.revisions[name] for name in loaded if name in world.revisions and name not in records}


def _traffic(
    roles: Mapping[str, Roles], updates: Mapping[str, RolloutUpdate], still: Mapping[str, Settled], world: Observed
) -> TrafficPlan:
    routes = [
        still[model.name].route
        if model.name in still
        else _route(model, roles[model.name], updates[model.name].state, world) or _kept_route(model, world)
        for model in world.models
    ]
    main = world.groups.get(world.main)
    return TrafficPlan(
        routes=tuple(sorted((r for r in routes if r is not None), key=lambda route: route.model)),
        servers=tuple(server.endpoint for server in main.servers or main.leaving) if main is not None else (),
    )


def _kept_route(model: ModelObserved, world: Observed) -> Route | None:
    """Return the present route of a model whose roles are unknown: what serves goes on, with the present servers."""
    unread = model.problem is not None and model.problem.reason == STATUS_UNREADABLE and not model.deleting
    route = _present_route(model, world) if unread else None
    if route is None:
        return None
    shares = tuple(replace(share, endpoints=_endpoints(share.group, share.revision, world)) for share in route.shares)
    return replace(route, shares=shares, access=_access(model, world), limits=_limits(model, world))


def _endpoints(group: str, revision: str, world: Observed) -> tuple[Endpoint, ...]:
    return world.groups[group].endpoints(revision) if group in world.groups else ()


def _route(model: ModelObserved, roles: Roles, state: RolloutState | None, world: Observed) -> Route | None:
    stable = roles.stable
    assigned = record_of(stable.revision, model, world) if stable is not None else None
    if stable is None or assigned is None:
        return None
    report = prevailing_report(stable.group, stable.revision, world)
    other, weight = split(roles, state, world)
    shares = [_share(stable.group, assigned, 100 - weight, world)]
    for holder in (roles.candidate, roles.previous):
        holder_model = record_of(holder.revision, model, world) if holder is not None else None
        if holder is None or holder.group is None or holder_model is None:
            continue
        own = weight if holder is other else 0
        # Added with weight 0 beforehand, so that sending it requests later is a mere change of weights.
        if own or _may_get_requests(holder, holder.group, world):
            shares.append(_share(holder.group, holder_model, own, world))
    return Route(
        model=model.name,
        shares=tuple(shares),
        steps=report.steps if report is not None else (),
        exposed=(network_alias(model.name),) if "network" in assigned.expose else (),
        access=_access(model, world),
        limits=_limits(model, world),
        affinity=_affinity(roles, state, world),
        mirror=_mirror(model, roles, state, shares, world),
        keeps_pairs=_keeps_pairs(model, state, world),
        capture=capture_rule(model, assigned, shares, world),
    )


def _mirror(
    model: ModelObserved, roles: Roles, state: RolloutState | None, shares: Sequence[Share], world: Observed
) -> Mirror | None:
    """Return which requests are copied to stable and the candidate: some of them in Shadow, unless it is paused."""
    if state is None or state.phase is not Phase.SHADOW or state.paused or not world.compares:
        return None
    record = world.records.get(state.rollout)
    policy = record.policy if record is not None else model.wanted.policy if model.wanted is not None else None
    stable, candidate = groups_of(state, roles)
    answering = {share.group for share in shares if share.endpoints}
    if policy is None or policy.shadow is None or not {stable, candidate} <= answering:
        return None
    shadow = policy.shadow
    return Mirror(
        stable,
        candidate,
        shadow.percent,
        shadow.max_requests_per_second,
        has_baseline=any(isinstance(gate, MaskAgreementGate) and gate.minimum is None for gate in policy.gates),
    )


def _keeps_pairs(model: ModelObserved, state: RolloutState | None, world: Observed) -> Literal[True] | None:
    """Return whether what Shadow compared may be kept: until the next rollout, unless a person aborted this one."""
    if state is None or state.phase in (Phase.PENDING, Phase.GOLDEN) or not world.compares:
        return None
    record = world.records.get(state.rollout)
    policy = record.policy if record is not None else model.wanted.policy if model.wanted is not None else None
    aborted = state.phase is Phase.ROLLED_BACK and state.reason == _ABORTED
    return True if policy is not None and policy.shadow is not None and not aborted else None


def _affinity(roles: Roles, state: RolloutState | None, world: Observed) -> RouteAffinity | None:
    """Return how requests of one id stay together, None if the pool's gateway has no ids."""
    if world.pool is None or not world.pool.gateway.session_affinity:
        return None
    if state is None or state.ended:
        return RouteAffinity()
    # While a promoted revision is watched, it has the role of the stable one.
    holders = (holder for holder in (roles.candidate, roles.stable) if holder is not None)
    group = next((holder.group for holder in holders if holder.revision == state.revision), None)
    return RouteAffinity(last=group or "", salt=state.rollout)


def _access(model: ModelObserved, world: Observed) -> tuple[AccessRule, ...] | None:
    """Return who may use a model: as the gateways have it, if its spec cannot be read on that."""
    if model.access != ():
        return model.access
    present = _present_route(model, world)
    if present is None:
        return ()
    # A spec that can be read may have rules for callers that this release does not support; a lost spec has none.
    return present.access if _is_lost(model) else present.access or ()


def _limits(model: ModelObserved, world: Observed) -> RouteLimits | None:
    """Return the limits of a model's requests: as the gateways have them, if its spec is lost."""
    present = _present_route(model, world) if _is_lost(model) else None
    return present.limits if present is not None else model.limits


def _is_lost(model: ModelObserved) -> bool:
    return model.problem is not None and model.problem.reason == FILE_DAMAGED


def _present_route(model: ModelObserved, world: Observed) -> Route | None:
    routes = world.traffic.plan.routes if world.traffic.plan is not None else ()
    return next((route for route in routes if route.model == model.name), None)


def _may_get_requests(holder: Candidate | RoleHolder, group: str, world: Observed) -> bool:
    """Return whether gateways need a revision that gets no requests now: a return needs any server of it."""
    return answers(holder, world) if isinstance(holder, RoleHolder) else suffices(group, holder.revision, world)


def _share(group: str, assigned: AssignedModel, weight: int, world: Observed) -> Share:
    servers = world.groups.get(group)
    reports = servers.reports(assigned.revision) if servers is not None else None
    # A server that has ended reports nothing.
    load_s = reports.load_s if reports is not None else 0
    former = world.traffic.share(assigned.model, group)
    known_s = former.restart_s if former is not None and former.revision == assigned.revision else RESTART_S
    return Share(
        group,
        assigned.revision,
        weight,
        servers.endpoints(assigned.revision) if servers is not None else (),
        assigned.pipeline.runtime.max_requests,
        classes=_class_names(assigned) if world.pool is not None and world.pool.gateway.plain_http else None,
        device=(reports.device or None) if reports is not None else None,
        restart_s=RESTART_S + load_s if load_s else known_s,
    )


def _class_names(assigned: AssignedModel) -> tuple[tuple[int, str], ...] | None:
    """Return the ids and names of a revision's classes; None if there are too many for a traffic plan."""
    classes = assigned.pipeline.classes
    size = sum(len(item.name.encode()) for item in classes)
    return tuple((item.id, item.name) for item in classes) if size <= MAX_NAMES_BYTES else None
