"""Assignments to score a golden set: of both revisions of a rollout, for its gates."""

from __future__ import annotations

from segserve_builder.agent.protocol import AssignedModel, GoldenScoring
from segserve_operator.core.models.golden_scores import golden_gates, is_asked
from segserve_operator.core.models.observed import GroupObserved, ModelObserved, Observed


def with_scoring(assigned: AssignedModel, group: str, model: ModelObserved, world: Observed) -> AssignedModel:
    """Return the assignment with the golden set to score, if the model's rollout compares this revision."""
    state = model.status.rollout
    record = world.records.get(state.rollout) if state is not None and not state.ended else None
    if state is None or record is None or assigned.revision not in (record.stable, record.candidate):
        return assigned
    if model.wanted is None or model.wanted.assigned.golden is None:
        return assigned
    intervals_s = [gate.interval.total_seconds() for gate in golden_gates(record, state, model)]
    if not intervals_s:
        return assigned
    if not _can_score(world.groups.get(group), assigned.revision):
        return assigned
    scoring = GoldenScoring(
        golden=model.wanted.assigned.golden,
        interval_s=min(intervals_s),
        # A candidate that callers' requests put into quarantine is looked at again at once.
        round=state.quarantines,
    )
    return assigned.model_copy(update={"scoring": scoring})


def _can_score(group: GroupObserved | None, revision: str) -> bool:
    """Tell whether all agents of a group know scores; an earlier version would refuse the whole assignment."""
    if group is None:
        return False
    proofs = [report.proved for server in group.servers for report in server.reports if report.proved is not None]
    return all(proof.can_score for proof in proofs) and (bool(proofs) or is_asked(group, revision))
