"""The status of a pool, its events, and its slots for proving candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from segserve_operator.api.meta import format_duration
from segserve_operator.core.advance.explanations import hold_of
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.events import condition_events
from segserve_operator.core.models.failures import pool_problem
from segserve_operator.core.models.kstatus import reconciling, stalled_condition
from segserve_operator.core.models.update import offered_update
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.deadlines import DEADLINE_EXCEEDED, deadline_s, is_overdue, is_settling_overdue
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import (
    PROGRESS_DEADLINE_S,
    Candidate,
    GroupObserved,
    ModelObserved,
    Observed,
    ObservedCondition,
    PoolStatus,
)
from segserve_operator.core.world.quorum import bad_servers, needed

MAX_CANDIDATE_GROUPS: Final = 8
"""Number of candidates of a pool that progress in a group of their own at a time; further ones wait."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The models whose candidate may get a group of its own now, and models whose stalled candidate gives its up."""

    free: frozenset[str] = frozenset()
    given_up: frozenset[str] = frozenset()


def pool_status(world: Observed) -> PoolStatus | None:
    """Return the status of the pool; None without a pool or for one that has no status."""
    pool = world.pool
    if pool is None or pool.status is None:
        return None
    ready = _ready(world)
    progressing = _progressing(world, ready)
    waiting_since_s = _waiting_since_s(pool.status, ready, world.now_s)
    stalled = pool.update.stuck or stalled_condition(_stall(ready, waiting_since_s, world.now_s))
    return PoolStatus(
        observed_generation=pool.generation,
        conditions=(
            ready,
            progressing,
            _degraded(world),
            reconciling(progressing, stalled),
            stalled,
            *offered_update(world),
        ),
        main_group=pool.main,
        idle=_idle_groups(world),
        servers=_servers(world),
        models=len(world.models),
        url=world.gateway_url,
        template=pool.update.kept,
        waiting_since_s=waiting_since_s,
    )


def pool_events(before: PoolStatus | None, after: PoolStatus) -> tuple[Event, ...]:
    """Return the events of a change of a pool's status."""
    return tuple(condition_events(before.conditions if before is not None else (), after.conditions))


def _idle_groups(world: Observed) -> tuple[str, ...]:
    """Return the groups that get no requests, without the main group if nothing serves."""
    routes = world.traffic.plan.routes if world.traffic.plan is not None else ()
    serving = {share.group for route in routes for share in route.shares if share.weight} or {world.main}
    return tuple(sorted(world.groups.keys() - serving))


def _servers(world: Observed) -> int:
    main = world.groups.get(world.main)
    return sum(server.ready for server in main.servers) if main is not None else 0


def _wanted_servers(world: Observed) -> tuple[int, int]:
    """Return how many servers the main group should have, and how many of them the pool needs."""
    main = world.groups.get(world.main) or GroupObserved(world.main)
    return main.wanted, needed(main, world)


def _ready(world: Observed) -> ObservedCondition:
    wanted, least = _wanted_servers(world)
    servers = _servers(world)
    text = f"{servers} of {wanted} servers of group {world.main} are ready"
    if servers < least:
        return ObservedCondition("Ready", "False", "WaitingForServers", text)
    if world.traffic.plan is None or not world.traffic.answering:
        return ObservedCondition("Ready", "False", "NoGateway", "no gateway accepts requests yet")
    return ObservedCondition("Ready", "True", "Serving", text)


def _progressing(world: Observed, ready: ObservedCondition) -> ObservedCondition:
    if world.pool is not None and world.pool.progress is not None:
        return world.pool.progress
    moving = sum(m.roles.stable is not None and m.roles.stable.group != world.main for m in world.models)
    if moving:
        text = f"{moving} of {len(world.models)} models are not in group {world.main} yet"
        return ObservedCondition("Progressing", "True", "Moving", text)
    if ready.status != "True":
        return ObservedCondition("Progressing", "True", ready.reason, ready.message)
    if _servers(world) < _wanted_servers(world)[0]:
        return ObservedCondition("Progressing", "True", "WaitingForServers", ready.message)
    return ObservedCondition("Progressing", "False", "Idle", "no change is in progress")


def _degraded(world: Observed) -> ObservedCondition:
    problem = pool_problem(world) or _bad_server(world)
    if problem is None:
        return ObservedCondition("Degraded", "False", "AsWanted", "no problem is known")
    return ObservedCondition("Degraded", "True", problem.reason, problem.message)


def _bad_server(world: Observed) -> FailureReason | None:
    """Return a server that fails to serve what others of its group serve; the main group's come first."""
    for name in sorted(world.groups, key=lambda name: (name != world.main, name)):
        for server in world.groups[name].servers:
            for revision in sorted(server.failing):
                bad = bad_servers(name, revision, world)
                if bad is not None:
                    return bad
    return None


def _waiting_since_s(former: PoolStatus, ready: ObservedCondition, now_s: float) -> float | None:
    if ready.status == "True":
        return None
    return now_s if former.waiting_since_s is None else former.waiting_since_s


def _stall(ready: ObservedCondition, waiting_since_s: float | None, now_s: float) -> FailureReason | None:
    if waiting_since_s is None or now_s - waiting_since_s < PROGRESS_DEADLINE_S:
        return None
    deadline = format_duration(timedelta(seconds=PROGRESS_DEADLINE_S))
    return FailureReason(DEADLINE_EXCEEDED, f"the pool is not ready after {deadline}: {ready.reason}")


def slots(world: Observed) -> Slots:
    """Return which models get servers for a candidate now, longest waiting first, and which give servers up for that.

    Candidates that stalled before come after the others, and take servers of other stalled ones only after they have
    waited for a deadline themselves. Models whose candidate failed come last: it may be retried, but most stay as they
    are and must not block others.
    """
    running = sum(_progresses(model, world) for model in world.models)
    stalled = sorted((model for model in world.models if _is_stalled(model, world)), key=_age)
    waiting = sorted((model for model in world.models if _waits(model)), key=_place)
    room, most = MAX_CANDIDATE_GROUPS - running - len(stalled), max(MAX_CANDIDATE_GROUPS - running, 0)
    free: list[str] = []
    given_up = 0
    for model in waiting:
        if len(free) >= most:
            break
        if len(free) >= room + given_up:
            if not _may_displace(model, world):
                continue
            given_up += 1
        free.append(model.name)
    return Slots(frozenset(free), frozenset(model.name for model in stalled[:given_up]))


def _is_own(group: str | None, world: Observed) -> bool:
    """Return whether a group has the candidate of one model only."""
    return group is not None and world.pool is not None and group not in (world.pool.main, world.pool.canary)


def _progresses(model: ModelObserved, world: Observed) -> bool:
    """Return whether a model's change holds a slot: until its candidate failed or stalled, or is stable and settled.

    A stable revision that stays in its group only because of its predecessor holds no slot, and neither does a rollout
    that waits for a person.
    """
    candidate, stable = model.roles.candidate, model.roles.stable
    if candidate is not None and _is_own(candidate.group, world) and not _is_held(model.status.rollout, candidate):
        return not is_overdue(model, candidate, world)
    settles = stable is not None and model.roles.previous is None and stable.group != world.main
    return settles and not is_settling_overdue(model, stable, world)


def _is_held(state: RolloutState | None, candidate: Candidate) -> bool:
    return state is not None and state.revision == candidate.revision and bool(hold_of(state))


def _is_stalled(model: ModelObserved, world: Observed) -> bool:
    candidate = model.roles.candidate
    return candidate is not None and _is_own(candidate.group, world) and is_overdue(model, candidate, world)


def _age(model: ModelObserved) -> tuple[float, str]:
    candidate = model.roles.candidate
    return candidate.since_s if candidate is not None else math.inf, model.name


def _waits(model: ModelObserved) -> bool:
    """Return whether a model's spec, or its rollout, requires a revision that has neither a role nor a group."""
    if model.deleting:
        return False
    if model.wanted is None:
        candidate = model.roles.candidate
        return candidate is not None and candidate.group is None and model.is_left_as_it_was(candidate)
    roles, wanted = model.roles, model.wanted.assigned.revision
    if any(holder is not None and holder.revision == wanted for holder in (roles.stable, roles.previous)):
        return False
    candidate = roles.candidate
    return candidate is None or candidate.revision != wanted or candidate.group is None


def _wanted_candidate(model: ModelObserved) -> Candidate | None:
    """Return the candidate if it is the spec's revision; what another one went through does not count."""
    candidate, wanted = model.roles.candidate, model.wanted
    is_wanted = candidate is not None and (wanted is None or candidate.revision == wanted.assigned.revision)
    return candidate if is_wanted else None


def _place(model: ModelObserved) -> tuple[bool, bool, float, str]:
    candidate = _wanted_candidate(model)
    if candidate is None:
        return False, False, _age(model)[0], model.name
    return candidate.failure is not None, candidate.stalled is not None, candidate.since_s, model.name


def _may_displace(model: ModelObserved, world: Observed) -> bool:
    candidate = _wanted_candidate(model)
    if candidate is None:
        return True
    if candidate.failure is not None:
        return False
    return candidate.stalled is None or world.now_s - candidate.since_s >= deadline_s(model)
