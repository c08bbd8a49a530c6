"""Updates of a pool's servers to another template: whether one begins, and how many servers each main group has.

A pool keeps the template that it has adopted until its own settings change or a user requests the update. While one
template replaces another, the servers of both hold the same revisions and count as one group, under the name of the
adopted template's group: roles, routes and evidence do not notice the update.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from segserve_builder.agent.protocol import Assignment, ModelState
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.failures import group_problem
from segserve_operator.core.traffic import Route, Share, TrafficPlan, TrafficState
from segserve_operator.core.world.observed import (
    MAIN,
    GroupObserved,
    ModelObserved,
    Observed,
    ObservedCondition,
    PoolObserved,
    RoleHolder,
    Roles,
    ServerObserved,
    Template,
)

UPDATE_AVAILABLE: Final = "UpdateAvailable"
STALLED_S: Final = 600.0
"""Time after which an update whose new servers do not come up is stalled."""
_DIGEST: Final = re.compile(r"[0-9a-f]{8}")
_MAIN_NAME: Final = re.compile(rf"{MAIN}-{_DIGEST.pattern}")


def with_template(world: Observed) -> Observed:
    """Return the world with the template that its pool keeps, and the main groups of all templates as one."""
    pool = world.pool
    if pool is None or not pool.template:
        return world
    kept = _kept(pool, world)
    counts = _step(pool, kept, world)
    progress, stuck = _conditions(pool, kept, world)
    update = replace(pool.update, kept=kept, counts=counts, stuck=stuck)
    return _as_one_group(replace(world, pool=replace(pool, update=update, progress=pool.progress or progress)))


def _step(pool: PoolObserved, kept: Template, world: Observed) -> dict[str, int]:
    """Return the next number of servers of each main group."""
    target = _main(kept.next or kept.digest)
    former = [group for name, group in main_groups(world).items() if name != target]
    present = world.groups.get(target) or GroupObserved(target, replicas=0)
    if not former and not kept.next:
        return {target: pool.replicas}
    if pool.update.policy.paused:
        return _unchanged(pool, kept, present, former)
    if pool.update.policy.strategy == "Recreate":
        ended = not any(map(_occupied, former))
        return {group.name: 0 for group in former} | {target: pool.replicas if ended else present.replicas}
    return _rolled(pool, present, former, world.traffic)


def spread(
    groups: Mapping[str, Assignment],
    smaller: Mapping[str, int],
    pool: PoolObserved,
    present: Mapping[str, GroupObserved],
) -> tuple[dict[str, Assignment], dict[str, int]]:
    """Return the assignments and the numbers of servers of all groups, from the assignments of the roles' groups.

    `smaller` are the numbers of groups that need fewer servers than the pool has. `present` are the groups that were
    observed, with the main groups of all templates; `pool` has that template which it keeps.
    """
    all_groups = dict(groups)
    for name, count in pool.update.counts.items():
        if name not in all_groups and (count or _occupied(present.get(name))):
            all_groups[name] = groups[pool.main]
    return all_groups, {name: pool.update.counts.get(name, smaller.get(name, pool.replicas)) for name in all_groups}


def is_outdated(group: str, world: Observed) -> bool:
    """Return whether a candidate had better go to a group of the present template.

    The template that the pool keeps is good enough, unless the group's servers do not come up.
    """
    pool, present = world.pool, world.groups.get(group)
    if pool is None or group.endswith(f"-{pool.template}"):
        return False
    kept = pool.update.kept
    is_kept = kept is not None and group.endswith(f"-{kept.digest}")
    return not is_kept or (present is not None and present.problem is not None)


def template_of(group: str) -> str:
    """Return the digest of the template that a group was made from, of a platform that has templates."""
    return group.rpartition("-")[2]


def offered_update(world: Observed) -> Iterator[ObservedCondition]:
    """Yield the condition that says which update the operator offers, if it offers one."""
    pool = world.pool
    kept = pool.update.kept if pool is not None else None
    if pool is None or kept is None or kept.next or kept.digest == pool.template:
        return
    difference = f" ({pool.update.difference})" if pool.update.difference else ""
    text = (
        f"servers keep template {kept.digest}, the operator would make them from {pool.template}{difference}; "
        f"`kubectl annotate --overwrite tpool {pool.name} segserve.dev/update={pool.template}` asks for it"
    )
    yield ObservedCondition(UPDATE_AVAILABLE, "True", "OperatorChanged", text)


def _conditions(
    pool: PoolObserved, kept: Template, world: Observed
) -> tuple[ObservedCondition | None, ObservedCondition | None]:
    """Return how far an update is, as the condition Progressing, and why it goes no further, as Stalled."""
    target = _main(kept.next or kept.digest)
    others = any(name != target and (group.replicas or group.servers) for name, group in main_groups(world).items())
    if not kept.next and not others:
        return None, None
    new = world.groups.get(target) or GroupObserved(target, replicas=0)
    needed = served_revisions(group for name, group in main_groups(world).items() if name != target)
    answering = answering_servers(new, needed)
    count = len(answering)
    text = f"{count} of {pool.replicas} servers are of template {_digest(target)}"
    if pool.update.policy.paused:
        return ObservedCondition("Progressing", "False", "UpdatePaused", f"{text}: spec.update.paused is true"), None
    progress = ObservedCondition("Progressing", "True", "Updating", text)
    problem = group_problem(target, world) or _failure(new, needed)
    if problem is None and not all(_is_asked(server, needed, world.traffic) for server in answering):
        behind = FailureReason("GatewaysBehind", "some gateway does not send requests to the new servers yet")
        problem = world.traffic.problem or behind
    if problem is None or world.now_s - kept.since_s < STALLED_S:
        return progress, None
    return progress, ObservedCondition("Stalled", "True", problem.reason, f"{text}: {problem.message}")


def _failure(group: GroupObserved, revisions: Collection[str]) -> FailureReason | None:
    """Return why a server does not serve one of these revisions, None if none says so."""
    for server in group.servers:
        for report in map(server.report, sorted(revisions)):
            if report is not None and report.state is ModelState.FAILED:
                return FailureReason(report.reason, f"{report.revision} on server {server.name}: {report.message}")
    return None


# Which template


def _kept(pool: PoolObserved, world: Observed) -> Template:
    former = _adopted(pool, world)
    answered = pool.update.request if _is_asked_for(pool) else former.request if former is not None else ""
    offered = Template(pool.template, pool.update.settings, answered)
    if former is None or former.digest == pool.template:
        return offered
    group = world.groups.get(_main(former.digest))
    runs = group is not None and (group.intact or group.replicas > 0 or bool(group.servers))
    at_once = not pool.update.policy.paused and _serves_nothing(world)
    if not runs or at_once or _is_hopeless(main_groups(world).values()):
        return offered
    if _is_finished(former, pool, world):
        return offered
    if not _is_wanted(former, pool):
        return replace(former, next="", since_s=0.0)
    return former if former.next == pool.template else replace(former, next=pool.template, since_s=world.now_s)


def _adopted(pool: PoolObserved, world: Observed) -> Template | None:
    """Return the template that the status names; if it names none, the template of most servers."""
    if pool.status is not None and pool.status.template is not None:
        return pool.status.template
    mains = main_groups(world).values()
    largest = max(mains, key=lambda group: (len(group.servers), group.replicas, group.name), default=None)
    return Template(_digest(largest.name), pool.update.settings, pool.update.request) if largest is not None else None


def _is_wanted(former: Template, pool: PoolObserved) -> bool:
    asked = _is_asked_for(pool) and pool.update.request != former.request
    return former.settings != pool.update.settings or asked


def _is_asked_for(pool: PoolObserved) -> bool:
    """Return whether the request is for the template that this operator offers: it may name the next operator's."""
    request = pool.update.request
    return bool(request) and (request == pool.template or not _DIGEST.fullmatch(request))


def _serves_nothing(world: Observed) -> bool:
    """Return whether there are models and none has served yet: all servers may then be replaced at once."""
    roles = [model.roles for model in world.models]
    served = served_revisions(main_groups(world).values())
    return bool(roles) and not served and all(each.stable is None for each in roles)


def _is_hopeless(groups: Collection[GroupObserved]) -> bool:
    """Return whether nothing is lost with these servers: none answers, and it is known why."""
    stuck = [group for group in groups if group.replicas]
    return bool(stuck) and all(group.problem is not None and not _ready(group) for group in stuck)


def _is_finished(former: Template, pool: PoolObserved, world: Observed) -> bool:
    target = world.groups.get(_main(pool.template))
    if former.next != pool.template or target is None or not _ready(target):
        return False
    others = [group for name, group in main_groups(world).items() if name != target.name]
    return target.replicas == pool.replicas and not any(group.replicas or group.servers for group in others)


# How many servers


def _unchanged(
    pool: PoolObserved, kept: Template, target: GroupObserved, former: Collection[GroupObserved]
) -> dict[str, int]:
    """Return the present numbers, changed only as much as the pool was scaled."""
    counts = {group.name: group.replicas for group in (*former, target)}
    main = _main(kept.digest)
    counts[main] = counts.get(main, 0) + max(pool.replicas - sum(counts.values()), 0)
    excess = sum(counts.values()) - pool.replicas - _surge(pool)
    for name in counts:
        removed = min(max(excess, 0), counts[name])
        counts[name], excess = counts[name] - removed, excess - removed
    return counts


def _rolled(
    pool: PoolObserved, target: GroupObserved, former: list[GroupObserved], traffic: TrafficState
) -> dict[str, int]:
    """Return the numbers after a step: at most `maxSurge` too many, at most `maxUnavailable` too few that answer."""
    wanted, least = pool.replicas, pool.replicas - _unavailable(pool)
    if _is_hopeless(former) and not _ready(target):
        return {group.name: 0 for group in former} | {target.name: wanted}
    needed = served_revisions(former)
    room = wanted + _surge(pool) - sum(map(_occupied, former)) - len(target.leaving)
    counts = {target.name: max(min(wanted, room), min(target.replicas, wanted))}
    answering = {group.name: min(len(answering_servers(group, needed)), group.replicas) for group in former}
    asked = [server for server in answering_servers(target, needed) if _is_asked(server, needed, traffic)]
    answering[target.name] = min(len(asked), target.replicas)
    removable = sum(group.replicas for group in former) + answering[target.name] - least
    spare = sum(answering.values()) - least
    # What was begun and given up goes first, the adopted template's servers last.
    for group in sorted(former, key=lambda group: answering[group.name]):
        idle = min(group.replicas - answering[group.name], max(removable, 0))
        good = min(answering[group.name], max(spare, 0), max(removable - idle, 0))
        counts[group.name] = group.replicas - idle - good
        removable, spare = removable - idle - good, spare - good
    return counts


def _is_asked(server: ServerObserved, revisions: Collection[str], traffic: TrafficState) -> bool:
    """Return whether all gateways send a server requests for these revisions; until then it can replace no other.

    A gateway may refuse a plan, as one without a certificate does if servers begin to require one.
    """
    if traffic.plan is None:
        return not revisions
    return all(
        route.model not in traffic.pending and server.endpoint in share.endpoints
        for route in traffic.plan.routes
        for share in route.shares
        if share.revision in revisions and _MAIN_NAME.fullmatch(share.group)
    )


def _surge(pool: PoolObserved) -> int:
    surge = pool.update.policy.max_surge
    count = surge if isinstance(surge, int) else -(-pool.replicas * int(surge.rstrip("%")) // 100)
    return count or int(_unavailable(pool) == 0)


def _unavailable(pool: PoolObserved) -> int:
    missing = pool.update.policy.max_unavailable
    count = missing if isinstance(missing, int) else pool.replicas * int(missing.rstrip("%")) // 100
    return min(count, pool.replicas)


def _occupied(group: GroupObserved | None) -> int:
    """Return the number of servers that may have a machine now, those that terminate included."""
    return max(group.replicas, len(group.servers)) + len(group.leaving) if group is not None else 0


def _ready(group: GroupObserved) -> bool:
    return any(server.ready for server in group.servers)


def served_revisions(groups: Iterable[GroupObserved]) -> frozenset[str]:
    """Return the revisions that some server of these groups serves: a server that replaces one has to serve them."""
    return frozenset(
        assigned.revision for group in groups for assigned in group.assignment.models if group.proved(assigned.revision)
    )


def answering_servers(group: GroupObserved, revisions: Collection[str]) -> list[ServerObserved]:
    """Return the servers that serve all of these revisions."""
    return [server for server in group.servers if server.ready and all(map(server.proved, revisions))]


# One group of many


def _as_one_group(world: Observed) -> Observed:
    """Return the world with all main groups as one: the group of the template that the pool keeps."""
    main = world.main
    mains = main_groups(world)
    others = {name: group for name, group in mains.items() if name != main}
    models = tuple(_in_main(model, main) for model in world.models)
    if not others:
        return replace(world, models=models)
    first = world.groups.get(main) or next(iter(others.values()))
    parts = (first, *(group for group in others.values() if group is not first))
    joined = replace(
        first,
        name=main,
        servers=tuple(server for part in parts for server in part.servers),
        leaving=tuple(server for part in parts for server in part.leaving),
        problem=next((part.problem for part in parts if part.problem is not None), None),
    )
    groups = {name: group for name, group in world.groups.items() if name not in others} | {main: joined}
    return replace(world, models=models, groups=groups, traffic=_in_one(world.traffic, set(others), main))


def main_groups(world: Observed) -> dict[str, GroupObserved]:
    """Return the main groups of all templates by name."""
    return {name: group for name, group in world.groups.items() if _MAIN_NAME.fullmatch(name)}


def _main(digest: str) -> str:
    return f"{MAIN}-{digest}"


def _digest(main: str) -> str:
    return main.removeprefix(f"{MAIN}-")


def _in_main(model: ModelObserved, main: str) -> ModelObserved:
    """Return the model with its revisions in the pool's main group, if they are in another template's."""
    roles = model.roles
    candidate = roles.candidate
    if candidate is not None and candidate.group is not None and _MAIN_NAME.fullmatch(candidate.group):
        candidate = replace(candidate, group=main)
    moved = Roles(_moved(roles.stable, main), candidate, _moved(roles.previous, main))
    return model if moved == roles else replace(model, status=replace(model.status, roles=moved))


def _moved(holder: RoleHolder | None, main: str) -> RoleHolder | None:
    return replace(holder, group=main) if holder is not None and _MAIN_NAME.fullmatch(holder.group) else holder


def _in_one(traffic: TrafficState, names: Collection[str], main: str) -> TrafficState:
    """Return the state of the gateways with the shares of these groups under the name of the main one."""
    active: dict[tuple[str, str], int] = {}
    for (model, group), count in traffic.active.items():
        at = (model, main if group in names else group)
        active[at] = active.get(at, 0) + count
    plan = traffic.plan
    if plan is not None and any(share.group in names for route in plan.routes for share in route.shares):
        routes = tuple(replace(route, shares=tuple(_shares(route, names, main))) for route in plan.routes)
        plan = TrafficPlan(routes, plan.servers)
    return replace(traffic, plan=plan, active=active)


def _shares(route: Route, names: Collection[str], main: str) -> Iterator[Share]:
    for share in route.shares:
        yield replace(share, group=main) if share.group in names else share
