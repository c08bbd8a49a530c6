"""The gate `drift` in rollouts: comparisons of what the servers of both revisions count, and its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from segserve_operator.api.rollout_policy import DriftGate
from segserve_operator.core.advance.case import RolloutCase, VerdictSource
from segserve_operator.core.drift.comparison import RevisionComparison
from segserve_operator.core.drift.detector import Histograms
from segserve_operator.core.gates import drift
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.world.observed import Observed


def drift_gate(case: RolloutCase) -> DriftGate | None:
    """Return the gate that compares answers, None without one, or if a person has skipped it."""
    return next((gate for gate in case.gates if isinstance(gate, DriftGate)), None)


def with_comparisons(world: Observed) -> Observed:
    """Return the world with comparisons of what servers report now; those of rollouts that have ended are left out."""
    comparisons = {}
    for case in filter(None, (RolloutCase.current(model, world) for model in world.models)):
        record, gate = case.record, drift_gate(case)
        if gate is not None:
            candidate, stable = (_counted(revision, world) for revision in (record.candidate, record.stable))
            former = world.comparisons.get(record.name, RevisionComparison())
            # Without a weight the candidate has copies, chosen by what the comparator has time for, or nothing.
            comparisons[record.name] = (
                former.with_reports(candidate, stable, gate.tolerance)
                if case.state.weight > 0
                else former.interrupted(candidate, stable)
            )
    return replace(world, comparisons=comparisons) if comparisons or world.comparisons else world


def _verdicts(case: RolloutCase) -> Iterator[Verdict]:
    """Yield the gate's verdict on what has been counted so far; nothing without the gate."""
    gate, record, weight = drift_gate(case), case.record, case.state.weight
    if gate is None:
        return
    found = case.world.comparisons.get(record.name, RevisionComparison())
    result = CheckResult(drift.NAME, case.world.now_s, answers=found, weight=weight)
    if weight > 0 and not found.blocks and not all(found.seen):
        counts = case.model.wanted is None or case.model.wanted.assigned.metrics.answers
        what = (
            "the servers' agents have reported no counts of answers of both revisions yet, which those of an earlier "
            "version of segserve never do"
        )
        result = replace(result, answers=None, problem=what if counts else "spec.metrics.answers is off")
    verdict = drift.judge(gate, result, record.policy, case.shares.get(gate.gate, 0.0))
    former = next((each for each in record.verdicts if each.gate == gate.gate), verdict)
    # A proof stays one after a restart, where the comparison begins anew, and whatever comes later.
    stays = drift.is_held(former) and verdict.reason not in (drift.ANSWERS_DIFFER, drift.NOT_COMPARABLE)
    yield former if stays else verdict


def _counted(revision: str, world: Observed) -> dict[str, Histograms]:
    """Return what the servers of a revision report by name, whatever group they belong to."""
    return {
        server.name: report.answers.histograms
        for group in world.groups.values()
        for server, report in group.reports(revision).said
        if report.answers is not None
    }


SOURCE: Final = VerdictSource(
    verdicts=_verdicts,
    signal=lambda case: replace(case.signal("answers"), held=any(map(drift.is_held, case.verdicts("answers")))),
)
