"""State that is known without a status, or without a report: a note of its role is beside each revision's record.

Backups and GitOps tools bring specs back, not statuses. Without a stable revision the spec's would be promoted at
once, even one that was rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.traffic import TrafficState
from segserve_operator.core.world.observed import (
    Candidate,
    GroupObserved,
    ModelObserved,
    ModelStatus,
    RoleHolder,
    Roles,
    ServerObserved,
)
from segserve_operator.core.world.requests import MAX_HANDLED, PREFIX, RolloutRequest

RoleName = Literal["stable", "candidate", "previous", "refused"]
ROLLED_BACK: Final = "RolledBack"
_RETURNS: Final = ("rollback", "abort")


@dataclass(frozen=True, slots=True)
class RevisionNote:
    """The role of a revision since `since_s` (Unix seconds), the group that serves it, and why it was refused.

    `handled` are the texts of the model's handled annotations; they are with the stable revision, else with another.
    """

    role: RoleName
    since_s: float
    group: str = ""
    failure: FailureReason | None = None
    handled: tuple[str, ...] = ()


def notes_of(status: ModelStatus) -> dict[str, RevisionNote]:
    """Return the notes of a model's revisions, by revision."""
    notes: dict[str, RevisionNote] = {}
    roles = status.roles
    if roles.stable is not None:
        notes[roles.stable.revision] = RevisionNote("stable", roles.stable.since_s, roles.stable.group)
    if roles.previous is not None:
        notes[roles.previous.revision] = RevisionNote("previous", roles.previous.since_s, roles.previous.group)
    if roles.candidate is not None:
        candidate = roles.candidate
        role: RoleName = "candidate" if candidate.failure is None else "refused"
        notes[candidate.revision] = RevisionNote(role, candidate.since_s, candidate.group or "", candidate.failure)
    for revision in list(notes)[:1]:
        notes[revision] = replace(notes[revision], handled=status.handled)
    return notes


def is_blank(model: ModelObserved) -> bool:
    """Return whether a model's status names no revision: it is new, or its status was lost."""
    return model.status.roles == Roles() and not model.deleting


def with_roles_of(
    model: ModelObserved,
    notes: Mapping[str, RevisionNote],
    rolled_back: FailureReason | None,
    now_s: float,
    *,
    has_servers: bool,
) -> ModelObserved:
    """Return a model whose status is blank with the roles that the notes name.

    `rolled_back` is why the last rollout of the spec's revision was rolled back, if one is on record. A candidate that
    was neither refused nor promoted is left out: the spec brings it back, from the start. Where the stable revision
    `has_servers`, only its status was lost.
    """
    roles, taken = _roles_of(notes), tuple[str, ...]()
    if not has_servers:
        # No server answers for either revision, so that no request is lost by the return.
        roles, taken = _with_return(model, roles, notes, now_s)
    wanted = model.wanted.assigned.revision if model.wanted is not None else None
    if wanted is not None and roles.candidate is None and (roles.stable is None or roles.stable.revision != wanted):
        refusal = rolled_back or _returned_from(model, wanted, roles)
        if refusal is not None:
            roles = replace(roles, candidate=Candidate(wanted, None, now_s, refusal))
    known = tuple(dict.fromkeys((*_handled(notes), *model.status.handled, *taken)))[-MAX_HANDLED:]
    if roles == Roles() and known == model.status.handled:
        return model
    return replace(model, status=replace(model.status, roles=roles, handled=known))


def with_presumed_reports(groups: Mapping[str, GroupObserved], traffic: TrafficState) -> dict[str, GroupObserved]:
    """Return groups in which a server whose report cannot be read has what the gateways send it requests for.

    It must not lose its requests, and gets no new ones.
    """
    return {
        name: group
        if all(server.is_read for server in group.servers)
        else replace(group, servers=tuple(_presumed(server, name, traffic) for server in group.servers))
        for name, group in groups.items()
    }


def _presumed(server: ServerObserved, group: str, traffic: TrafficState) -> ServerObserved:
    if server.is_read or traffic.plan is None:
        return server
    held = (
        ModelReport(model=route.model, revision=share.revision, state=ModelState.READY, loaded=True)
        for route in traffic.plan.routes
        for share in route.shares
        if share.group == group and server.endpoint in share.endpoints
    )
    return replace(server, reports=tuple(held))


def _roles_of(notes: Mapping[str, RevisionNote]) -> Roles:
    def newest(*names: RoleName) -> tuple[str, RevisionNote] | None:
        found = [(note.since_s, revision) for revision, note in notes.items() if note.role in names]
        return (max(found)[1], notes[max(found)[1]]) if found else None

    # Notes are written one by one: between two writes there may be two stable revisions, or none.
    stable = newest("stable") or newest("previous")
    if stable is not None:
        notes = {revision: note for revision, note in notes.items() if revision != stable[0]}
    previous, refused = newest("previous", "stable"), newest("refused")
    return Roles(
        stable=RoleHolder(stable[0], stable[1].group, stable[1].since_s) if stable is not None else None,
        previous=RoleHolder(previous[0], previous[1].group, previous[1].since_s) if previous is not None else None,
        candidate=Candidate(refused[0], None, refused[1].since_s, refused[1].failure) if refused is not None else None,
    )


def _with_return(
    model: ModelObserved, roles: Roles, notes: Mapping[str, RevisionNote], now_s: float
) -> tuple[Roles, tuple[str, ...]]:
    """Return the roles after a rollback that was requested and not handled before the status was lost, and its text."""
    request = RolloutRequest("rollback", model.annotations.get(f"{PREFIX}rollback", ""))
    stable, previous = roles.stable, roles.previous
    if stable is None or previous is None or request.revision != stable.revision or request.text in _handled(notes):
        return roles, ()
    failure = FailureReason(ROLLED_BACK, "a person returned to the former revision")
    left = Candidate(stable.revision, None, now_s, failure)
    return Roles(stable=replace(previous, since_s=now_s), candidate=left), (request.text,)


def _handled(notes: Mapping[str, RevisionNote]) -> tuple[str, ...]:
    return tuple(text for note in notes.values() for text in note.handled)


def _returned_from(model: ModelObserved, revision: str, roles: Roles) -> FailureReason | None:
    """Return why the spec's revision is refused if an annotation requests to leave it, and there is none to return to.

    A GitOps tool in another cluster applies only the annotation and the spec.
    """
    if roles.stable is not None:
        return None
    for verb in _RETURNS:
        text = model.annotations.get(PREFIX + verb, "")
        if text and RolloutRequest(verb, text).revision == revision:
            message = f"the annotation {PREFIX}{verb} asks to leave {revision}, and no other revision is on record here"
            return FailureReason(ROLLED_BACK, message)
    return None
