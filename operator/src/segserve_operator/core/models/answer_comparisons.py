"""The gate `drift` in rollouts: comparisons of what the servers of both revisions count, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from segserve_operator.api.rollout_policy import DriftGate
from segserve_operator.core.drift.comparison import RevisionComparison
from segserve_operator.core.drift.detector import Histograms
from segserve_operator.core.gates import drift
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.models.observed import ModelObserved, Observed
from segserve_operator.core.rollout.record import Record, RolloutState


def drift_gate(record: Record, state: RolloutState) -> DriftGate | None:
    """Return the gate that compares answers, None without one, or if a person has skipped it."""
    gates = (gate for gate in record.policy.gates if isinstance(gate, DriftGate))
    return next((gate for gate in gates if gate.gate not in state.skipped), None)


def compared_by(model: ModelObserved, world: Observed) -> tuple[Record, DriftGate] | None:
    """Return the record of a model's rollout in progress and its gate that compares answers, None without one."""
    state = model.status.rollout
    record = world.records.get(state.rollout) if state is not None and not state.ended else None
    gate = drift_gate(record, state) if record is not None and state is not None else None
    return (record, gate) if record is not None and gate is not None else None


def with_comparisons(world: Observed) -> Observed:
    """Return the world with comparisons of what servers report now; those of rollouts that have ended are left out."""
    comparisons = {}
    for model in world.models:
        if (compared := compared_by(model, world)) is not None:
            record, gate = compared
            candidate, stable = (_counted(revision, world) for revision in (record.candidate, record.stable))
            former = world.comparisons.get(record.name, RevisionComparison())
            # Without a weight the candidate has copies, chosen by what the comparator has time for, or nothing.
            comparisons[record.name] = (
                former.with_reports(candidate, stable, gate.tolerance)
                if model.status.rollout is not None and model.status.rollout.weight > 0
                else former.interrupted(candidate, stable)
            )
    return replace(world, comparisons=comparisons) if comparisons or world.comparisons else world


def drift_verdict(
    record: Record, state: RolloutState, model: ModelObserved, world: Observed, shares: Mapping[str, float]
) -> Verdict | None:
    """Return the gate's verdict on what has been counted so far; None without the gate."""
    gate = drift_gate(record, state)
    if gate is None:
        return None
    found = world.comparisons.get(record.name, RevisionComparison())
    result = CheckResult(drift.NAME, world.now_s, answers=found, weight=state.weight)
    if state.weight > 0 and not found.blocks and not all(found.seen):
        counts = model.wanted is None or model.wanted.assigned.metrics.answers
        what = (
            "the servers' agents have reported no counts of answers of both revisions yet, which those of an earlier "
            "version of segserve never do"
        )
        result = replace(result, answers=None, problem=what if counts else "spec.metrics.answers is off")
    verdict = drift.judge(gate, result, record.policy, shares.get(gate.gate, 0.0))
    former = next((each for each in record.verdicts if each.gate == gate.gate), verdict)
    # A proof stays one after a restart, where the comparison begins anew, and whatever comes later.
    stays = drift.is_held(former) and verdict.reason not in (drift.ANSWERS_DIFFER, drift.NOT_COMPARABLE)
    return former if stays else verdict


def _counted(revision: str, world: Observed) -> dict[str, Histograms]:
    """Return what the servers of a revision report by name, whatever group they belong to."""
    return {
        server.name: report.answers.histograms
        for group in world.groups.values()
        for server, report in group.reports(revision).said
        if report.answers is not None
    }
