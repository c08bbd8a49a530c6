"""Why groups do not start and which effects failed, in the words of a model's status and of the pool's.

What concerns several models is said in the pool's status; theirs refer to it. The scheduler changes its words with each
node: as a part of every model's status, each change would be a write per model.
"""

from __future__ import annotations

from collections.abc import Iterator

from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.observed import (
    CANARY,
    MAIN,
    EffectFailure,
    ModelObserved,
    Observed,
    Roles,
)

OF_GROUPS = ("StartGroup", "Assign")
OF_GATEWAY = "SetTraffic"
OF_MODELS = ("SaveRevision", "SaveRollout", "Forget")


def group_problem(group: str, world: Observed) -> FailureReason | None:
    """Return why a group does not become what it should be: an object that is refused, else its pods' problem."""
    failed = next((each for kind in OF_GROUPS if (each := _reported(kind, group, world)) is not None), None)
    if failed is not None:
        return failed.reason
    return world.groups[group].problem if group in world.groups else None


def problem_for_model(group: str, world: Observed) -> FailureReason | None:
    """Return a group's problem for the status of a model in it: a reference if other models are in it, too."""
    problem = group_problem(group, world)
    if problem is None or not _is_shared(group):
        return problem
    return FailureReason(problem.reason, f"group {group} has a problem, which the pool's conditions describe")


def refusal_of(model: ModelObserved, roles: Roles, world: Observed) -> FailureReason | None:
    """Return what the API refuses of a model's own: an object of a group that it does not share, or a record."""
    own = [group for group, _ in roles.loaded_revisions() if not _is_shared(group)]
    subjects = {model.name, *roles.revisions()}
    keys = [
        *((kind, group) for group in own for kind in OF_GROUPS),
        *((kind, subject) for kind in OF_MODELS for subject in sorted(subjects)),
    ]
    failures = (_reported(kind, subject, world) for kind, subject in keys)
    return next((failure.reason for failure in failures if failure is not None), None)


def pool_problem(world: Observed) -> FailureReason | None:
    """Return the problem of the main group, else of the gateway, of a group of several models, of any other effect."""
    return next(_pool_problems(world), None)


def _pool_problems(world: Observed) -> Iterator[FailureReason]:
    names = world.groups.keys() | {failure.subject for failure in world.failures.values() if failure.kind in OF_GROUPS}
    groups = sorted(names, key=lambda name: (name != world.main, not _is_shared(name), name))
    problems = [(name, problem) for name in groups if (problem := group_problem(name, world)) is not None]
    yield from (problem for name, problem in problems if name == world.main)
    gateway = _reported(OF_GATEWAY, "", world)
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
    """Tell whether a group is, or was, the pool's main or canary group: those names end with a template's digest."""
    return group.partition("-")[0] in (MAIN, CANARY) and group.count("-") <= 1
