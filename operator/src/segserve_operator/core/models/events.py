"""Events of a model, derived from its statuses before and after a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from segserve_operator.core.models.observed import ModelStatus, ObservedCondition, Roles


@dataclass(frozen=True, slots=True)
class Event:
    """One Kubernetes event; `reason` is one CamelCase word. Equal events are merged."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def status_events(before: ModelStatus, after: ModelStatus) -> tuple[Event, ...]:
    """Return the events of a change of status; none if only messages differ."""
    moves = _moves(before.roles, after.roles)
    if before.rollout != after.rollout:
        # The rollout emits events about its own moves, with their reasons.
        moves = (event for event in moves if event.reason not in ("Promoted", "RolledBack"))
    return (*moves, *condition_events(before.conditions, after.conditions))


def condition_events(before: Iterable[ObservedCondition], after: Iterable[ObservedCondition]) -> Iterator[Event]:
    """Yield a warning for each new problem, and an event when readiness returns."""
    former_by_type = {condition.type: condition for condition in before}
    for condition in after:
        former = former_by_type.get(condition.type)
        status, reason = (former.status, former.reason) if former is not None else ("", "")
        if (
            condition.type == "Degraded"
            and condition.status == "True"
            and (status, reason) != (condition.status, condition.reason)
        ):
            yield Event("Warning", condition.reason, condition.message)
        if condition.type == "Ready" and condition.status == "True" and status != "True":
            yield Event("Normal", "Ready", condition.message)


def _moves(before: Roles, after: Roles) -> Iterator[Event]:
    if after.candidate is not None and after.candidate.group is not None:
        known = before.candidate is not None and before.candidate.revision == after.candidate.revision
        if not known or (before.candidate is not None and before.candidate.group != after.candidate.group):
            text = f"{after.candidate.revision} is being proved in group {after.candidate.group}"
            yield Event("Normal", "CandidateStarted", text)
    was, now = before.stable, after.stable
    if now is None or now == was:
        return
    if was is not None and now.revision == was.revision:
        yield Event("Normal", "Settled", f"{now.revision} moved to group {now.group}")
    elif before.previous is not None and before.previous.revision == now.revision and was is not None:
        yield Event("Normal", "RolledBack", f"{now.revision} gets all requests again; {was.revision} stays loaded")
    else:
        kept = f"; {was.revision} stays loaded" if was is not None else ""
        yield Event("Normal", "Promoted", f"{now.revision} in group {now.group} gets all requests{kept}")
