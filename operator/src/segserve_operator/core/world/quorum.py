"""How many servers are enough: for a revision to serve, to take over from another one, and to be blamed.

A fleet is never whole: a node is missing, or one server cannot load what the others have proved.
"""

from __future__ import annotations

from typing import Final

from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import (
    Candidate,
    GroupObserved,
    MinReady,
    Observed,
    RoleHolder,
    ServerObserved,
)

ARTIFACT_REASONS: Final = frozenset(
    {
        "ArtifactMissing",
        "ArtifactTooLarge",
        "DigestMismatch",
        "MissingPackage",
        "RelativeUri",
        "SignatureMismatch",
        "SignatureRejected",
        "SourceDenied",
        "SourceUnauthorized",
        "UnknownName",
        "UnsafeArtifact",
    }
)
SAME_EVERYWHERE: Final = ARTIFACT_REASONS | {"PipelineInvalid"}
"""Reasons that follow only from the artifact and the spec: what one server says of them, every other one would."""
SERVER_FAILED: Final = "ServerFailed"
_SEVERAL: Final = 2


def needed(group: GroupObserved, world: Observed) -> int:
    """Return the number of a group's servers that must have proved a revision before it serves."""
    rule = world.pool.min_ready if world.pool is not None else MinReady()
    return rule.of(max(group.wanted, 1))


def suffices(name: str, revision: str, world: Observed) -> bool:
    """Return whether enough servers of a group have proved a revision."""
    group = world.groups.get(name)
    return group is not None and len(group.proved(revision)) >= needed(group, world)


def answers(holder: Candidate | RoleHolder, world: Observed) -> bool:
    """Return whether any server answers for a role."""
    group = world.groups.get(holder.group or "")
    return group is not None and bool(group.endpoints(holder.revision))


def may_take_over(name: str, revision: str, former: RoleHolder | None, world: Observed, *, overdue: bool) -> bool:
    """Return whether a group has enough servers to answer instead of another group.

    With fewer servers than answer for `former` now, it waits for its others: until they have proved the revision, are
    known not to come soon, or are `overdue`.
    """
    group = world.groups.get(name)
    if group is None or not suffices(name, revision, world):
        return False
    held = world.groups.get(former.group) if former is not None else None
    serving = len(held.endpoints(former.revision)) if held is not None and former is not None else 0
    proved = len(group.proved(revision))
    return proved >= min(serving, group.wanted) or overdue or proved + _stuck(group, revision) >= group.wanted


def _stuck(group: GroupObserved, revision: str) -> int:
    """Return the number of servers that are not to be waited for: they failed, or their pods do not start."""
    absent = group.wanted - sum(server.ready for server in group.servers)
    return len(group.failed(revision)) + (max(absent, 0) if group.problem is not None else 0)


def blame(name: str, revision: str, world: Observed) -> FailureReason | None:
    """Return why a revision cannot be served, None while a bad server may be the cause.

    It is the revision's fault if its artifact or spec is refused, or if too few servers are left that could prove it
    and several say so, or all that there are, or one that tried again while no other has proved it.
    """
    group = world.groups.get(name)
    if group is None:
        return None
    reports = (report for _, report in group.reports(revision).said)
    said = [report for report in reports if report.state is ModelState.FAILED and not report.retryable]
    reason = next((report for report in said if report.reason in SAME_EVERYWHERE), None)
    absent = _stuck(group, revision) - len(group.failed(revision))
    is_out_of_reach = max(group.wanted, 1) - len(said) - absent < needed(group, world)
    if reason is None and said and is_out_of_reach:
        repeated = next((report for report in said if report.attempts > 1), None)
        if len(said) >= min(_SEVERAL, max(group.wanted, 1)):
            reason = said[0]
        elif repeated is not None and not group.proved(revision):
            reason = repeated
    return FailureReason(reason.reason, reason.message) if reason is not None else None


def prevailing_report(name: str, revision: str, world: Observed) -> ModelReport | None:
    """Return the report that stands for a group: the least advanced one, or a better one than the bad servers'."""
    group = world.groups.get(name)
    if group is None:
        return None
    if suffices(name, revision, world):
        return group.proved(revision)[0].report(revision)
    reports = group.reports(revision)
    failed = len(reports.failed)
    if failed and (reports.proved or max(group.wanted, 1) - failed >= needed(group, world)):
        return reports.least(without_failed=True) or reports.least()
    return reports.least()


def bad_servers(name: str, revision: str, world: Observed, *, or_all: bool = False) -> FailureReason | None:
    """Return which servers fail to serve a revision that others serve or go on with, or None.

    `or_all`: it may also be all servers of the group.
    """
    group, prevailing = world.groups.get(name), prevailing_report(name, revision, world)
    failed = group.failed(revision) if group is not None else ()
    if group is None or not failed or prevailing is None:
        return None
    if prevailing.state is ModelState.FAILED and not or_all:
        return None
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    serving = f"{len(group.proved(revision))} of {max(group.wanted, 1)} servers serve {revision}"
    return FailureReason(SERVER_FAILED, f"{described(failed[0], revision)}{more}; {serving}")


def described(server: ServerObserved, revision: str) -> str:
    """Return a server that failed, with its node and what it says."""
    report = server.report(revision)
    where = f" on node {server.node}" if server.node else ""
    why = f"{report.reason}: {report.message}" if report is not None else "it does not answer"
    return f"server {server.name}{where}: {why}"
