"""Progress deadlines: how long a candidate's servers may take to prove it, and what it waits for beyond that."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from segserve_operator.api.meta import format_duration
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.world.observed import (
    PROGRESS_DEADLINE_S,
    Candidate,
    ModelObserved,
    Observed,
    RoleHolder,
    Roles,
)
from segserve_operator.core.world.quorum import needed

DEADLINE_EXCEEDED: Final = "ProgressDeadlineExceeded"


def deadline_s(model: ModelObserved) -> float:
    """Return the seconds that a candidate's servers may take."""
    return model.wanted.progress_deadline_s if model.wanted is not None else PROGRESS_DEADLINE_S


def is_overdue(model: ModelObserved, candidate: Candidate | None, world: Observed) -> bool:
    """Return whether a candidate's servers have not proved it in time; what gets requests is never overdue."""
    if candidate is None or candidate.group is None or candidate.failure is not None:
        return False
    state = model.status.rollout
    if model.rolls_out(candidate) and state is not None and state.phase is not Phase.PENDING:
        return False
    return world.now_s - candidate.since_s >= deadline_s(model)


def is_settling_overdue(model: ModelObserved, stable: RoleHolder | None, world: Observed) -> bool:
    """Return whether a stable revision has not moved to the main group in time after its predecessor was let go."""
    if stable is None or stable.group == world.main or model.wanted is None:
        return False
    return world.now_s - stable.since_s >= model.wanted.keep_previous_s + deadline_s(model)


def overdue_reason(model: ModelObserved, revision: str, group_name: str, world: Observed) -> FailureReason:
    """Return what a revision waits for beyond its deadline, in words that do not change while it does."""
    group = world.groups.get(group_name)
    deadline = format_duration(timedelta(seconds=deadline_s(model)))
    if group is None:
        return FailureReason(DEADLINE_EXCEEDED, f"{revision}: group {group_name} has not started within {deadline}")
    proved, wanted = len(group.proved(revision)), needed(group, world)
    missing = f"{proved} of at least {wanted} servers of group {group_name} have proved {revision} within {deadline}"
    if proved >= wanted:
        missing = f"{revision} in group {group_name} is proved, but not every gateway has known it within {deadline}"
    report = group.report(revision)
    said = (report.reason or report.state.value) if report is not None and proved < wanted else ""
    why = group.problem.reason if group.problem is not None else said
    return FailureReason(DEADLINE_EXCEEDED, f"{missing}: {why}" if why else missing)


def waited_out_s(roles: Roles, limit_s: float, now_s: float) -> float:
    """Return the seconds until a candidate's deadline; infinity without one, or if it has passed."""
    candidate = roles.candidate
    if candidate is None or candidate.failure is not None:
        return math.inf
    left_s = candidate.since_s + limit_s - now_s
    return left_s if left_s > 0 else math.inf
