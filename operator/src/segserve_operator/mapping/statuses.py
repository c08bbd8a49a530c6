"""Conversion between the core's statuses and the resources'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from segserve_common.kube.names import GROUP_LABEL
from segserve_operator.api.meta import Condition, ConditionStatus
from segserve_operator.api.pool_update import TemplateStatus
from segserve_operator.api.segmentation_model import (
    CandidateState,
    CandidateStatus,
    RevisionStatus,
    Role,
    RolesStatus,
    RoleStatus,
    SegmentationModelStatus,
)
from segserve_operator.api.segmentation_rollout import MAX_HANDLED_ANNOTATIONS, RolloutPhase, RolloutStatus
from segserve_operator.api.triton_pool import TritonPoolStatus
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import (
    Candidate,
    ModelStatus,
    ObservedCondition,
    PoolStatus,
    RoleHolder,
    Roles,
    Template,
)
from segserve_operator.store_format import STORE_FORMAT

_LEFT_OUT: Final = re.compile(rf"{GROUP_LABEL} notin \(([^)]*)\)")


def from_api(status: SegmentationModelStatus) -> ModelStatus:
    """Return the core's form of a model's status."""
    return ModelStatus(
        observed_generation=max(status.observed_generation or 0, 0),
        roles=Roles(
            stable=_holder(status.roles.stable),
            candidate=_candidate(status.roles.candidate),
            previous=_holder(status.roles.previous),
        ),
        conditions=_observed(status.conditions),
        weight=status.weight or 0,
        url=status.url or "",
        rollout=_standing(status.rollout),
        handled=status.handled_annotations,
        slo=status.slo or "",
        drift=status.drift or "",
        device=status.device or "",
        read_generation=max((each.observed_generation or 0 for each in status.conditions), default=0),
    )


def to_api(status: ModelStatus, former: SegmentationModelStatus, now: datetime) -> SegmentationModelStatus:
    """Return a resource's status; whatever did not change keeps the times that it has in `former`."""
    return SegmentationModelStatus(
        observed_generation=status.observed_generation,
        conditions=_conditions(status.conditions, status.read_generation, former.conditions, now),
        roles=RolesStatus(
            stable=_role_status(status.roles.stable),
            candidate=_candidate_status(status.roles.candidate),
            previous=_role_status(status.roles.previous),
        ),
        revisions=tuple(_revisions(status.roles)),
        url=status.url or None,
        phase=RolloutPhase(status.phase.label) if status.phase is not None else None,
        weight=status.weight,
        slo=status.slo or None,
        drift=status.drift or None,
        device=status.device or None,
        rollout=_rollout_status(status.rollout),
        handled_annotations=status.handled[-MAX_HANDLED_ANNOTATIONS:],
    )


def pool_from_api(status: TritonPoolStatus) -> PoolStatus:
    """Return the core's form of a pool's status."""
    return PoolStatus(
        observed_generation=max(status.observed_generation or 0, 0),
        conditions=_observed(status.conditions),
        main_group=status.main_group or "",
        idle=_idle_groups(status.selector or ""),
        servers=status.replicas or 0,
        models=status.models or 0,
        url=status.url or "",
        template=_template(status.template),
        waiting_since_s=status.waiting_since.timestamp() if status.waiting_since is not None else None,
    )


def pool_to_api(status: PoolStatus, former: TritonPoolStatus, now: datetime, selector: str) -> TritonPoolStatus:
    """Return a pool's status; `selector` is the label selector of the servers that serve."""
    return TritonPoolStatus(
        observed_generation=status.observed_generation,
        format=STORE_FORMAT,
        conditions=_conditions(status.conditions, status.observed_generation, former.conditions, now),
        replicas=status.servers,
        selector=selector,
        url=status.url or None,
        main_group=status.main_group,
        models=status.models,
        template=_template_status(status.template),
        waiting_since=_time(status.waiting_since_s) if status.waiting_since_s is not None else None,
    )


def refused(reason: str, message: str, generation: int, former: Iterable[Condition], now: datetime) -> list[Condition]:
    """Return the conditions of an object whose spec, or whose pool's, cannot be read: what serves goes on."""
    former = tuple(former)
    told = [ObservedCondition("Degraded", "True", reason, message)]
    if all(condition.type != "Ready" for condition in former):
        told.append(ObservedCondition("Ready", "False", reason, message))
    kept = [condition for condition in former if condition.type not in {each.type for each in told}]
    return [*kept, *_conditions(told, generation, former, now)]


def _template(status: TemplateStatus | None) -> Template | None:
    if status is None:
        return None
    since_s = status.since.timestamp() if status.since is not None else 0.0
    return Template(status.digest, status.settings, status.request, status.next or "", since_s)


def _template_status(template: Template | None) -> TemplateStatus | None:
    if template is None:
        return None
    return TemplateStatus(
        digest=template.digest,
        settings=template.settings,
        request=template.request,
        next=template.next or None,
        since=_time(template.since_s) if template.since_s else None,
    )


def _idle_groups(selector: str) -> tuple[str, ...]:
    found = _LEFT_OUT.search(selector)
    return tuple(found[1].split(",")) if found is not None else ()


def _observed(conditions: Iterable[Condition]) -> tuple[ObservedCondition, ...]:
    return tuple(ObservedCondition(c.type, c.status.value, c.reason, c.message) for c in conditions)


def _holder(role: RoleStatus | None) -> RoleHolder | None:
    return RoleHolder(role.revision, role.group, role.since.timestamp()) if role is not None else None


def _candidate(role: CandidateStatus | None) -> Candidate | None:
    if role is None:
        return None
    failed = role.state is not CandidateState.PENDING
    failure = FailureReason(role.reason or "Failed", role.message or "") if failed else None
    stalled = FailureReason(role.reason, role.message or "") if role.reason and not failed else None
    return Candidate(
        role.revision,
        role.group,
        role.since.timestamp(),
        failure,
        stalled,
        bool(role.promoted),
        role.template or "",
    )


def _standing(status: RolloutStatus | None) -> RolloutState | None:
    if status is None:
        return None
    return RolloutState(
        rollout=status.name,
        revision=status.revision,
        phase=Phase.labelled(status.phase),
        step=status.step,
        sequence=status.sequence,
        paused=status.paused,
        quarantines=status.quarantines,
        started_s=status.started_at.timestamp(),
        since_s=status.since.timestamp(),
        step_since_s=status.step_since.timestamp(),
        resumed_s=status.resumed_at.timestamp() if status.resumed_at is not None else 0.0,
        weight=status.weight,
        skipped=status.skipped_gates,
        reason=status.reason or "",
        message=status.message or "",
    )


def _rollout_status(state: RolloutState | None) -> RolloutStatus | None:
    if state is None:
        return None
    return RolloutStatus(
        name=state.rollout,
        revision=state.revision,
        phase=RolloutPhase(state.phase.label),
        step=state.step,
        sequence=state.sequence,
        paused=state.paused,
        quarantines=state.quarantines,
        started_at=_time(state.started_s),
        since=_time(state.since_s),
        step_since=_time(state.step_since_s),
        resumed_at=_time(state.resumed_s) if state.resumed_s else None,
        weight=state.weight,
        skipped_gates=state.skipped,
        reason=state.reason or None,
        message=state.message or None,
    )


def _role_status(holder: RoleHolder | None) -> RoleStatus | None:
    if holder is None:
        return None
    return RoleStatus(revision=holder.revision, group=holder.group, since=_time(holder.since_s))


def _candidate_status(candidate: Candidate | None) -> CandidateStatus | None:
    if candidate is None:
        return None
    told = candidate.failure or candidate.stalled
    state = CandidateState.FAILED if candidate.failure is not None else CandidateState.PENDING
    return CandidateStatus(
        revision=candidate.revision,
        group=candidate.group,
        since=_time(candidate.since_s),
        state=CandidateState.JUDGED if candidate.judged else state,
        promoted=candidate.promoted or None,
        reason=told.reason if told is not None else None,
        message=told.message if told is not None else None,
        template=candidate.template or None,
    )


def _conditions(
    observed: Iterable[ObservedCondition], generation: int, former: Iterable[Condition], now: datetime
) -> tuple[Condition, ...]:
    before = {condition.type: condition for condition in former}
    return tuple(_condition(each, generation, before.get(each.type), now) for each in observed)


def _condition(observed: ObservedCondition, generation: int, before: Condition | None, now: datetime) -> Condition:
    kept = before is not None and before.status == observed.status
    return Condition(
        type=observed.type,
        status=ConditionStatus(observed.status),
        reason=observed.reason,
        message=observed.message,
        last_transition_time=before.last_transition_time if before is not None and kept else now,
        observed_generation=generation,
    )


def _revisions(roles: Roles) -> Iterator[RevisionStatus]:
    for role, holder in (
        (Role.CANDIDATE, roles.candidate),
        (Role.STABLE, roles.stable),
        (Role.PREVIOUS, roles.previous),
    ):
        if holder is not None:
            yield RevisionStatus(revision=holder.revision, role=role, created_at=_time(holder.since_s))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
