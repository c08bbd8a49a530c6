"""What people want to be told of, read off two statuses of a model: the one before and the one after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from segserve_operator.core.models.observed import ModelStatus, ObservedCondition, Roles


@dataclass(frozen=True, slots=True)
class Event:
    """One sentence for people; `reason` is one CamelCase word. Equal notices are one."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def status_events(before: ModelStatus, after: ModelStatus) -> tuple[Event, ...]:
    """Return what to tell of a change of status; nothing where only texts differ."""
    moves = _moves(before.roles, after.roles)
    if before.rollout != after.rollout:
        # A rollout tells of its own moves, and why they are made.
        moves = (told for told in moves if told.reason not in ("Promoted", "RolledBack"))
    return (*moves, *condition_events(before.conditions, after.conditions))


def condition_events(before: Iterable[ObservedCondition], after: Iterable[ObservedCondition]) -> Iterator[Event]:
    """Yield a warning for a new trouble, and a word when readiness comes back."""
    was = {said.type: said for said in before}
    for said in after:
        former = was.get(said.type)
        status, reason = (former.status, former.reason) if former is not None else ("", "")
        if said.type == "Degraded" and said.status == "True" and (status, reason) != (said.status, said.reason):
            yield Event("Warning", said.reason, said.message)
        if said.type == "Ready" and said.status == "True" and status != "True":
            yield Event("Normal", "Ready", said.message)


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
