"""The number of servers of a candidate's own group: enough for the weight that it gets next, not for all requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from segserve_operator.core.rollout.engine import step_after_shadow
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import engine_policy
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import ModelObserved, Observed, Roles
from segserve_operator.core.world.quorum import suffices
from segserve_operator.core.world.requests import RolloutRequest, next_request

_ALL: Final = 100


def with_sizes(world: Observed) -> Observed:
    """Return the world whose candidates' groups have only the servers that they need now."""
    states = {model.name: model.status.rollout for model in world.models}
    wanted = sizes({model.name: model.roles for model in world.models}, states, world)
    groups = {
        name: replace(group, wanted=min(group.wanted, wanted[name])) if name in wanted else group
        for name, group in world.groups.items()
    }
    return replace(world, groups=groups) if wanted else world


def sizes(roles: Mapping[str, Roles], states: Mapping[str, RolloutState | None], world: Observed) -> dict[str, int]:
    """Return the number of servers of each candidate's own group that needs fewer than a group of the pool has."""
    pool = world.pool
    if pool is None or pool.replicas <= 1:
        return {}
    found: dict[str, int] = {}
    for model in world.models:
        group, weight = _group_of(roles[model.name], world), _next_weight(model, states[model.name], world)
        if group is None or weight >= _ALL:
            continue
        # It never shrinks: an earlier change may have given it more, and requests may already come.
        present = world.groups[group].replicas if group in world.groups else 0
        count = max(-(-pool.replicas * weight // _ALL), present, 1)
        if count < pool.replicas:
            found[group] = count
    return found


def has_grown(roles: Roles, world: Observed) -> bool:
    """Return whether enough servers answer for the candidate's next weight; without a candidate none are missing."""
    candidate = roles.candidate
    if candidate is None or candidate.failure is not None:
        return True
    return candidate.group is not None and suffices(candidate.group, candidate.revision, world)


def is_deferred(request: RolloutRequest, state: RolloutState | None) -> bool:
    """Return whether a request raises the weight, and so waits until the candidate has the servers for it."""
    return request.verb == "promote" or (request.verb == "resume" and state is not None and not state.paused)


def _group_of(roles: Roles, world: Observed) -> str | None:
    """Return the own group of a candidate that is rolled out beside a stable revision, or None."""
    pool, candidate = world.pool, roles.candidate
    if pool is None or candidate is None or candidate.failure is not None or roles.stable is None:
        return None
    held = {holder.group for holder in (roles.stable, roles.previous) if holder is not None}
    return None if candidate.group in (*held, pool.main, pool.canary) else candidate.group


def _next_weight(model: ModelObserved, state: RolloutState | None, world: Observed) -> int:
    """Return the percentage of requests that a model's candidate gets after its present step."""
    request = next_request(model.annotations, model.status.handled)
    record = world.records.get(state.rollout) if state is not None and not state.ended else None
    spec = model.wanted.policy if model.wanted is not None else None
    policy = record.policy if record is not None else spec
    if policy is None or policy.on_undecided == "Promote" or (request is not None and request.verb == "promote"):
        return _ALL
    engine = engine_policy(policy)
    # What is only judged gets no requests, and one server answers the copies.
    last = _ALL if engine.serves else 1
    following = [*(step.weight for step in engine.steps), last]
    step = state.step if state is not None and not state.ended else -1
    if state is not None and state.phase is Phase.SHADOW and record is not None:
        step = int(step_after_shadow(engine, record.progress, world.now_s)) - 1
    return max(following[min(max(step + 1, 0), len(following) - 1)], state.weight if state is not None else 0)
