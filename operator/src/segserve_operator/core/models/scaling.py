"""Pools whose number of servers follows requests: how many they have now, and what their status says of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.update import STALLED_S, answering_servers, main_groups, served_revisions
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.scaling import (
    LONGEST_GAP_S,
    PoolLoad,
    ScalingPolicy,
    StartingServers,
    decide,
    load_sample,
    observed,
)
from segserve_operator.core.world.observed import (
    MAIN,
    GroupObserved,
    Observed,
    ObservedCondition,
    ScalingState,
)

SCALING_ACTIVE: Final = "ScalingActive"
SERVERS_FAIL: Final = "ServersFail"
NO_COUNTS_S: Final = 15.0
"""Time without counts of a gateway after which the status says so."""
_NO_HINDRANCE: Final = frozenset({"NodeLost"})
"""Problems of servers that do not keep others from starting."""


def with_scaling(world: Observed) -> Observed:
    """Return the world whose pool has as many servers as its requests need; the same one without `spec.scaling`."""
    pool = world.pool
    if pool is None or pool.scaling is None:
        return world if world.load == PoolLoad() else replace(world, load=PoolLoad())
    mains = tuple(main_groups(world).values()) or tuple(g for name, g in world.groups.items() if name == MAIN)
    former = pool.status.scaling if pool.status is not None else None
    if former is not None and former.desired != world.load.told and former.desired > world.load.history.desired:
        # Another process was the leader meanwhile: requests that it has counted are not in this history.
        world = replace(world, load=PoolLoad())
    last = world.load.history
    if last.samples and abs(world.now_s - last.at_s) <= LONGEST_GAP_S:
        present = last.desired
    else:
        # A process that has just begun may not have written the last number that it, or another one, requested.
        stated = former.desired if former is not None else pool.replicas
        present = max(stated, *(group.replicas for group in mains), 1)
    problem = _hindrance(mains, present)
    failing_since_s = None if problem is None else min(world.load.failing_since_s or world.now_s, world.now_s)
    ready = _ready(mains)
    # A process that begins in an outage of all servers has seen none of them.
    seen = world.load.answered
    answered = min(ready or present if seen is None else max(ready, seen), present)
    load = world.load
    if (sampled := load_sample(load, world.gateway_loads or {}, _ready(_serving(mains, world)))) is not None:
        load = replace(sampled[0], history=observed(load.history, sampled[1], pool.scaling.target))
    told = former.desired if former is not None else None
    load = replace(load, failing_since_s=failing_since_s, answered=answered, told=told)
    gives_up = failing_since_s is not None and world.now_s - failing_since_s >= STALLED_S
    policy = _feasible(pool.scaling, answered if gives_up else present, former, problem, world)
    is_short = ready < present and not gives_up
    hold = is_short or _is_changing(world) or _is_silent(load, world) or load.partial_since_s is not None
    history, decision = decide(load.history, policy, present, hold=hold)
    desired = decision.desired
    starting, startup_s = load.starting, former.startup_s if former is not None else 0.0
    if not last.samples and former is not None and ready < present:
        # A former process requested them.
        since_s = former.since_s if former.desired == present else world.now_s
        starting = StartingServers(since_s, present, max(ready, 1))
    if desired > present:
        starting = StartingServers(world.now_s, desired, min(starting.before, present) if starting else present)
    elif starting is not None:
        took_s = world.now_s - starting.since_s
        if desired < starting.desired or abs(took_s) >= STALLED_S:
            starting = None
        elif _answering(mains) >= desired:
            # A clock that was set back has measured nothing.
            starting, startup_s = None, float(round(took_s)) if took_s > 0 else startup_s
    if former is not None and former.desired == desired:
        state = replace(former, startup_s=startup_s)
    elif problem is not None and gives_up and desired < present:
        state = ScalingState(desired, SERVERS_FAIL, problem.message, world.now_s, startup_s)
    else:
        state = ScalingState(desired, decision.reason, decision.message, world.now_s, startup_s)
    load = replace(load, history=history, starting=starting)
    scaled = replace(
        pool,
        replicas=desired,
        scaled=state,
        starting=max(starting.desired - max(starting.before, _answering(mains)), 0) if starting is not None else 0,
        scaling_active=_condition(pool.scaling, state, load, problem, world),
    )
    groups = {
        name: group if group.wanted == desired else replace(group, wanted=desired)
        for name, group in world.groups.items()
    }
    return replace(world, pool=scaled, groups=groups, load=load)


def _feasible(
    policy: ScalingPolicy,
    possible: int,
    former: ScalingState | None,
    problem: FailureReason | None,
    world: Observed,
) -> ScalingPolicy:
    """Return the policy within what the cluster has room for.

    While servers cannot start, no more are requested. Those that have not started for long are given up, as a pool
    that waits for them takes no new revision, and requested again only after as long; those that have answered before
    are needed as soon as an outage ends.
    """
    given_up = _has_given_up(former, world)
    if former is not None and given_up:
        possible = min(possible, former.desired)
    if problem is None and not given_up:
        return policy
    return replace(policy, maximum=min(max(possible, policy.minimum), policy.maximum))


def _has_given_up(state: ScalingState | None, world: Observed) -> bool:
    """Return whether servers that did not start were given up a short while ago."""
    return state is not None and state.reason == SERVERS_FAIL and 0 <= world.now_s - state.since_s < STALLED_S


def _serving(mains: Collection[GroupObserved], world: Observed) -> Collection[GroupObserved]:
    """Return the groups that get requests, also those of candidates; the main ones before any does."""
    routes = world.traffic.plan.routes if world.traffic.plan is not None else ()
    names = {share.group for route in routes for share in route.shares if share.weight}
    return [world.groups[name] for name in names & world.groups.keys()] or mains


def _ready(groups: Collection[GroupObserved]) -> int:
    return sum(server.ready for group in groups for server in group.servers)


def _answering(mains: Collection[GroupObserved]) -> int:
    """Return the number of servers that serve all that some server of these groups serves."""
    served = served_revisions(mains)
    return sum(len(answering_servers(group, served)) for group in mains)


def _hindrance(mains: Collection[GroupObserved], present: int) -> FailureReason | None:
    """Return why a wanted server does not start; pods that failed long ago are no reason where all are there."""
    if _ready(mains) >= present:
        return None
    problems = (group.problem for group in mains)
    return next((each for each in problems if each is not None and each.reason not in _NO_HINDRANCE), None)


def _is_changing(world: Observed) -> bool:
    """Return whether a rollout or an update of servers is in progress, during which none is given up."""
    kept = world.pool.status.template if world.pool is not None and world.pool.status is not None else None
    states = (model.status.rollout for model in world.models)
    rolls = any(state is not None and not state.ended and state.phase is not Phase.PENDING for state in states)
    return rolls or (kept is not None and bool(kept.next))


def _is_silent(load: PoolLoad, world: Observed) -> bool:
    return not load.history.samples or abs(world.now_s - load.history.at_s) > NO_COUNTS_S


def _condition(
    policy: ScalingPolicy, state: ScalingState, load: PoolLoad, problem: FailureReason | None, world: Observed
) -> ObservedCondition:
    if _is_silent(load, world):
        text = "no gateway reports its number of requests, so the number of servers stays"
        return ObservedCondition(SCALING_ACTIVE, "False", "NoCounts", text)
    if problem is not None:
        return ObservedCondition(SCALING_ACTIVE, "False", problem.reason, f"no more servers start: {problem.message}")
    if _has_given_up(state, world):
        text = "servers that did not start were given up; the next ones are requested ten minutes later"
        return ObservedCondition(SCALING_ACTIVE, "False", SERVERS_FAIL, text)
    if load.partial_since_s is not None and world.now_s - load.partial_since_s > NO_COUNTS_S:
        text = "not every gateway reports its number of requests, so no server is given up"
        return ObservedCondition(SCALING_ACTIVE, "True", "CountsMissing", text)
    if _is_changing(world):
        text = "no server is given up while a rollout or an update of servers is in progress"
        return ObservedCondition(SCALING_ACTIVE, "True", "RolloutInProgress", text)
    if state.desired == policy.maximum:
        text = f"the number of servers is at spec.scaling.maximum: {state.desired}"
        return ObservedCondition(SCALING_ACTIVE, "True", "Maximum", text)
    text = f"from {policy.minimum} to {policy.maximum} servers as requests come"
    return ObservedCondition(SCALING_ACTIVE, "True", "FollowsRequests", text)
