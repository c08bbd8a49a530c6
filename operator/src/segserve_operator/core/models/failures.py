"""Writes that failed: when each is tried again, and what statuses say of them and of groups that do not start.

What concerns several models is said in the pool's status; theirs refer to it. The scheduler changes its words with each
node: as a part of every model's status, each change would be a write per model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from segserve_common.backoff import Backoff
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.actions import (
    Action,
    Announce,
    AnnounceDrift,
    Assign,
    DropRevision,
    EmitEvent,
    EmitPoolEvent,
    Forget,
    SavePoolStatus,
    SaveRevision,
    SaveRollout,
    SaveStatus,
    SetTraffic,
    StartGroup,
    StopGroup,
)
from segserve_operator.core.world.observed import (
    CANARY,
    MAIN,
    EffectFailure,
    ModelObserved,
    Observed,
    Roles,
)

OF_GROUPS: Final = ("StartGroup", "Assign")
OF_MODELS: Final = ("SaveRevision", "SaveRollout", "Forget")
REFUSED: Final = Backoff(first_s=1.0, longest_s=30.0)
PASSING: Final = Backoff(first_s=1.0, longest_s=8.0)
LASTING: Final = 3
"""Number of failures in a row from which on statuses report what may pass in seconds, such as a conflict."""


def failed(action: Action, reason: FailureReason, world: Observed, *, passing: bool, wait_s: float) -> EffectFailure:
    """Return the failure of an action. `passing`: it may be over in seconds; the next attempt is at least in `wait_s`.

    The first attempt after a passing failure is in the next pass.
    """
    (kind, subject), content = key_of(action), _content(action, world)
    former = world.failures.get((kind, subject))
    attempts = former.attempts + 1 if former is not None and former.content == content else 1
    delay_s = 0.0
    if not passing:
        delay_s = REFUSED.delay_s(attempts)
    elif attempts > 1:
        delay_s = PASSING.delay_s(attempts - 1)
    reported = not passing or attempts >= LASTING or (former is not None and former.reported)
    return EffectFailure(
        kind, subject, reason, attempts, world.now_s + max(delay_s, wait_s), reported=reported, content=content
    )


def is_due(action: Action, world: Observed) -> bool:
    """Return whether an action may be tried now: it has not failed, it is another one, or its delay is over."""
    failure = world.failures.get(key_of(action))
    return failure is None or failure.content != _content(action, world) or is_over(failure, world)


def is_over(failure: EffectFailure, world: Observed) -> bool:
    """Return whether the delay of a failed effect is over."""
    left_s = failure.retry_s - world.now_s
    return not 0 < left_s <= max(REFUSED.longest_s, PASSING.longest_s)  # a clock may be set back


def key_of(action: Action) -> tuple[str, str]:
    """Return the kind of an action and what it is about."""
    match action:
        case StartGroup(group) | Assign(group) | StopGroup(group):
            subject = group
        case SaveRevision(name) | DropRevision(name) | SaveStatus(name) | EmitEvent(name) | Forget(name):
            subject = name
        case Announce(name) | AnnounceDrift(name):
            subject = name
        case SaveRollout(record):
            subject = record.name
        case EmitPoolEvent(event):
            subject = event.reason
        case SetTraffic() | SavePoolStatus():
            subject = ""
    return type(action).__name__, subject


def _content(action: Action, world: Observed) -> object:
    """Return what makes an action another one, which does not wait for the failed one's delay."""
    match action:
        case StartGroup(_, replicas):
            return replicas, world.pool.generation if world.pool is not None else 0
        case Assign(_, assignment):
            return assignment
        case SetTraffic(plan):
            return plan
        case SaveRevision(_, assigned):
            return assigned
        case SaveStatus(_, status):
            # Messages may change in every pass.
            return status.observed_generation, status.roles, status.weight
        case SaveRollout(record):
            return record.sequence
        case SavePoolStatus(status):
            return tuple((each.type, each.status, each.reason) for each in status.conditions)
        case _:
            return None


def without_refused_revisions(world: Observed) -> Observed:
    """Return the world in which specs whose revision cannot be recorded count as unreadable, until the next attempt.

    Such a model goes on with what it has, which its rollout may still leave.
    """

    def seen(model: ModelObserved) -> ModelObserved:
        assigned = model.wanted.assigned if model.wanted is not None else None
        failure = world.failures.get(("SaveRevision", assigned.revision)) if assigned is not None else None
        if failure is None or failure.content != assigned or not failure.reported or is_over(failure, world):
            return model
        return replace(model, wanted=None, problem=failure.reason)

    if not any(kind == "SaveRevision" for kind, _ in world.failures):
        return world
    return replace(world, models=tuple(map(seen, world.models)))


def group_problem(group: str, world: Observed) -> FailureReason | None:
    """Return why a group does not become what it should be: an object that is refused, else its pods' problem."""
    failed = next((each for kind in OF_GROUPS if (each := _reported(kind, group, world)) is not None), None)
    if failed is not None:
        return failed.reason
    return world.groups[group].problem if group in world.groups else None


def problem_for_model(group: str, world: Observed) -> FailureReason | None:
    """Return a group's problem for the status of a model in it: a reference if other models are in it as well."""
    problem = group_problem(group, world)
    if problem is None or not _is_shared(group):
        return problem
    return FailureReason(problem.reason, f"group {group} has a problem, which the pool's conditions describe")


def refusal_of(model: ModelObserved, roles: Roles, world: Observed) -> FailureReason | None:
    """Return what the API refuses of a model's own: an object of a group that it does not share, or a record."""
    if not world.failures:
        return None
    own = [group for group, _ in roles.loaded_revisions() if not _is_shared(group)]
    rollout = model.status.rollout
    subjects = {model.name, *roles.revisions(), *((rollout.rollout,) if rollout is not None else ())}
    keys = [
        *((kind, group) for group in own for kind in OF_GROUPS),
        *((kind, subject) for kind in OF_MODELS for subject in sorted(subjects)),
    ]
    failures = (_reported(kind, subject, world) for kind, subject in keys)
    return next((failure.reason for failure in failures if failure is not None), None)


def pool_problem(world: Observed) -> FailureReason | None:
    """Return the problem of the main group, else of the gateway, of a shared group, of another effect, of the spec."""
    return next(_pool_problems(world), None)


def _pool_problems(world: Observed) -> Iterator[FailureReason]:
    names = world.groups.keys() | {failure.subject for failure in world.failures.values() if failure.kind in OF_GROUPS}
    groups = sorted(names, key=lambda name: (name != world.main, not _is_shared(name), name))
    problems = [(name, problem) for name in groups if (problem := group_problem(name, world)) is not None]
    yield from (problem for name, problem in problems if name == world.main)
    gateway = _reported("SetTraffic", "", world)
    if gateway is not None:
        yield gateway.reason
    if world.traffic.problem is not None:
        yield world.traffic.problem
    yield from (problem for _, problem in problems)
    yield from (each.reason for _, each in sorted(world.failures.items()) if each.reported)
    if world.pool is not None and world.pool.ignored is not None:
        yield world.pool.ignored


def _reported(kind: str, subject: str, world: Observed) -> EffectFailure | None:
    failure = world.failures.get((kind, subject))
    return failure if failure is not None and failure.reported else None


def _is_shared(group: str) -> bool:
    """Return whether a group is, or was, the pool's main or canary group: those names end with a template's digest."""
    return group.partition("-")[0] in (MAIN, CANARY) and group.count("-") <= 1
