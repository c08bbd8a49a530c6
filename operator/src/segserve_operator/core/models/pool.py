"""The status of a pool, its events, and its slots for proving candidates."""

from __future__ import annotations

import math
from typing import Final

from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.events import Event, condition_events
from segserve_operator.core.models.observed import ModelObserved, Observed, ObservedCondition, PoolStatus
from segserve_operator.core.models.update import offered_update

MAX_CANDIDATE_GROUPS: Final = 8
"""Number of candidates of a pool that have a group of their own at a time; further ones wait."""


def pool_status(world: Observed) -> PoolStatus | None:
    """Return the status of the pool; None without a pool or for one that has no status."""
    pool = world.pool
    if pool is None or pool.status is None:
        return None
    ready = _ready(world)
    return PoolStatus(
        observed_generation=pool.generation,
        conditions=(ready, _progressing(world, ready), _degraded(world), *offered_update(world)),
        main_group=pool.main,
        servers=_servers(world),
        models=len(world.models),
        url=world.gateway_url,
        template=pool.kept,
    )


def pool_events(before: PoolStatus | None, after: PoolStatus) -> tuple[Event, ...]:
    """Return the events of a change of a pool's status."""
    return tuple(condition_events(before.conditions if before is not None else (), after.conditions))


def _servers(world: Observed) -> int:
    main = world.groups.get(world.main)
    return sum(server.ready for server in main.servers) if main is not None else 0


def _ready(world: Observed) -> ObservedCondition:
    main = world.groups.get(world.main)
    wanted = main.wanted if main is not None else 1
    servers = _servers(world)
    if servers < wanted:
        return ObservedCondition(
            "Ready", "False", "WaitingForServers", f"{servers} of {wanted} servers of group {world.main} are ready"
        )
    if world.traffic.plan is None or not world.traffic.answering:
        return ObservedCondition("Ready", "False", "NoGateway", "no gateway accepts requests yet")
    return ObservedCondition(
        "Ready", "True", "Serving", f"{servers} of {wanted} servers of group {world.main} are ready"
    )


def _progressing(world: Observed, ready: ObservedCondition) -> ObservedCondition:
    if world.pool is not None and world.pool.progress is not None:
        return world.pool.progress
    moving = sum(m.roles.stable is not None and m.roles.stable.group != world.main for m in world.models)
    if moving:
        text = f"{moving} of {len(world.models)} models are not in group {world.main} yet"
        return ObservedCondition("Progressing", "True", "Moving", text)
    if ready.status != "True":
        return ObservedCondition("Progressing", "True", ready.reason, ready.message)
    return ObservedCondition("Progressing", "False", "Idle", "no change is in progress")


def _degraded(world: Observed) -> ObservedCondition:
    problem = _problem(world)
    if problem is None:
        return ObservedCondition("Degraded", "False", "AsWanted", "no problem is known")
    return ObservedCondition("Degraded", "True", problem.reason, problem.message)


def _problem(world: Observed) -> FailureReason | None:
    """Return the problem of the main group, else of the gateway, else of any other group."""
    order = sorted(world.groups, key=lambda name: (name != world.main, name))
    troubled = [world.groups[name].problem for name in order if world.groups[name].problem is not None]
    ahead = [world.groups[world.main].problem] if world.main in world.groups else []
    return next((p for p in (*ahead, world.traffic.problem, *troubled) if p is not None), None)


def free_slots(world: Observed) -> frozenset[str]:
    """Return the models whose candidate may get a group of its own now, longest waiting first.

    Models whose candidate failed come last: it may be retried, but most stay as they are and must not block others.
    """
    running = sum(_holds_own_group(model, world) for model in world.models)
    waiting = sorted((model for model in world.models if _waits(model)), key=_place)
    return frozenset(model.name for model in waiting[: max(MAX_CANDIDATE_GROUPS - running, 0)])


def _place(model: ModelObserved) -> tuple[bool, float, str]:
    candidate = model.roles.candidate
    if candidate is None:
        return False, math.inf, model.name
    return candidate.failure is not None, candidate.since_s, model.name


def _holds_own_group(model: ModelObserved, world: Observed) -> bool:
    """Tell whether a model's change still occupies servers: until its candidate failed, or is stable and settled.

    A stable revision that stays in its group only because of its predecessor occupies no slot.
    """
    candidate, stable = model.roles.candidate, model.roles.stable
    groups = [candidate.group] if candidate is not None else []
    if stable is not None and model.roles.previous is None:
        groups.append(stable.group)
    return any(group is not None and group != world.main for group in groups)


def _waits(model: ModelObserved) -> bool:
    """Tell whether a model's spec requires a revision that has neither a role nor a group."""
    if model.wanted is None or model.deleting:
        return False
    roles, wanted = model.roles, model.wanted.assigned.revision
    if any(holder is not None and holder.revision == wanted for holder in (roles.stable, roles.previous)):
        return False
    candidate = roles.candidate
    return candidate is None or candidate.revision != wanted or candidate.group is None
