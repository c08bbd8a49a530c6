"""Scores of the golden set during a rollout: what the servers' reports say.

The agents of both revisions replay the golden set of the spec on their own servers; the gate compares them image by
image. The operator itself fetches nothing: it has no credentials for artifacts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_builder.agent.protocol import (
    AssignedModel,
    GoldenScoring,
    ModelReport,
    ScoreReport,
    unpack_classes,
    unpack_qualities,
    unpack_slices,
)
from segserve_operator.api.rollout_policy import CheckedGateSpec, RolloutPolicy, gate_name
from segserve_operator.core.advance.case import RolloutCase, VerdictSource
from segserve_operator.core.gates import checked_gate
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import Scores
from segserve_operator.core.rollout.engine import Signals
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.world.observed import ModelObserved, Observed

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Floats

UNAVAILABLE: Final = "GoldenUnavailable"
"""Reason of a verdict without scores, and of a rollout that ends for the lack of them."""


def with_scoring(assigned: AssignedModel, name: str, model: ModelObserved, world: Observed) -> AssignedModel:
    """Return the assignment with the golden set to score, if the model's rollout compares this revision."""
    case, group = RolloutCase.current(model, world), world.groups.get(name)
    if case is None or assigned.revision not in (case.record.stable, case.record.candidate):
        return assigned
    gates = case.gates_for("golden")
    if case.golden is None or not gates or group is None:
        return assigned
    scoring = GoldenScoring(
        golden=case.golden,
        interval_s=min(gate.interval.total_seconds() for gate in gates),
        # A candidate that callers' requests put into quarantine is looked at again at once.
        round=case.state.quarantines,
    )
    return assigned.model_copy(update={"scoring": scoring})


@dataclass(frozen=True, slots=True)
class Answers:
    """Reports of one revision's servers: scores, or a `problem` why there are none, or neither yet."""

    reports: tuple[ScoreReport, ...] = ()
    problem: str = ""


def _verdicts(case: RolloutCase) -> Iterator[Verdict]:
    """Yield new verdicts of the golden gates from the reports of both revisions.

    A verdict on scores stays while there are no new ones, and nothing is yielded then.
    """
    gates, policy = case.gates_for("golden"), case.record.policy
    if case.golden is None or not gates or case.state.phase is Phase.PENDING:
        return
    stable, candidate = (
        answers(who, reports, case.golden.sha256)
        for who, reports in zip(("stable", "the candidate"), case.reports, strict=True)
    )
    former = {verdict.gate: verdict for verdict in case.record.verdicts}
    for gate in gates:
        name = gate_name(gate)
        if stable.reports and candidate.reports:
            level = case.shares.get(gate.gate, 0.0)
            yield _judged(gate, policy, level, candidate.reports, stable.reports, _class_names(case))
        elif name not in former or former[name].reason == UNAVAILABLE:
            problem = candidate.problem or stable.problem
            if not problem and _undecided_s(case) >= policy.deadline.total_seconds():
                problem = "the servers have not scored the golden set until the deadline"
            if problem:
                yield Verdict(name, Outcome.UNDECIDED, UNAVAILABLE, problem)


@lru_cache(maxsize=2048)
def _judged(
    gate: CheckedGateSpec,
    policy: RolloutPolicy,
    level: float,
    candidate: tuple[ScoreReport, ...],
    stable: tuple[ScoreReport, ...],
    names: tuple[tuple[int, str], ...],
) -> Verdict:
    """Judge scores; cached, because every pass calls it and reports change only with a replay."""
    gate_type = checked_gate(gate.gate)
    assert gate_type is not None
    return gate_type.judge(gate, _scores(candidate, stable, dict(names)), policy, level)


def _signal(case: RolloutCase) -> Signals:
    """Return the verdicts' signal; scores that cannot be had in time end the rollout, or it goes on without them."""
    signal, verdicts = case.signal("golden"), case.verdicts("golden")
    lacking = [each for each in verdicts if each.reason == UNAVAILABLE and _gave_up(case)]
    if signal.forbidden or (lacking and case.record.policy.on_undecided != "Promote"):
        return replace(signal, golden=-1)
    allowed = all(each.outcome is Outcome.PASS or each in lacking for each in verdicts)
    return replace(signal, golden=int(allowed), allowed=allowed)


def _gave_up(case: RolloutCase) -> bool:
    """Return whether a rollout without scores does not wait for them any more."""
    if case.state.paused or case.model.wanted is None:
        return False
    return case.state.phase is not Phase.GOLDEN or _undecided_s(case) >= case.model.wanted.progress_deadline_s


def _undecided_s(case: RolloutCase) -> float:
    return case.world.now_s - max(case.state.since_s, case.state.resumed_s)


def answers(who: str, reports: Sequence[ModelReport], sha256: str) -> Answers:
    """Return what the servers of a revision say of a golden set; `who` names it in a problem."""
    scores = (report.scores for report in reports)
    scored = tuple(score for score in scores if score is not None and score.golden_sha256 == sha256)
    if done := tuple(score for score in scored if score.images and _is_readable(score)):
        return Answers(done)
    failed = next((score for score in scored if score.reason), None)
    if failed is not None:
        return Answers(problem=f"{who}'s servers cannot score the golden set: {failed.reason}: {failed.message}")
    return Answers()


@lru_cache(maxsize=4096)
def _is_readable(score: ScoreReport) -> bool:
    try:
        unpack_slices(score.slices, score.sliced)
        return bool(unpack_qualities(score.qualities)) and unpack_classes(score.classes) is not None
    except ValueError:
        return False


def _class_names(case: RolloutCase) -> tuple[tuple[int, str], ...]:
    record = case.world.revisions.get(case.state.revision)
    return tuple((item.id, item.name) for item in record.pipeline.classes) if record is not None else ()


def _scores(candidate: Sequence[ScoreReport], stable: Sequence[ScoreReport], names: Mapping[int, str]) -> Scores:
    """Compare the means over the servers of both; images that stable does not answer are not compared."""
    images, former = image_scores(candidate), image_scores(stable)
    paired = tuple(
        (0.0 if np.isnan(own) else float(own), float(other))
        for own, other in zip(images, former, strict=False)
        if not np.isnan(other)
    )
    # The set is the same on all servers; the first server's images are every server's.
    slices = unpack_slices(candidate[0].slices, candidate[0].sliced)
    compared = ~np.isnan(former[: len(images)])
    classes, former_classes = _classes(candidate), _classes(stable) if paired else {}
    means, former_means = _means(candidate), _means(stable) if paired else {}
    return Scores(
        paired=paired,
        classes={
            names.get(number, str(number)): (value, former_classes.get(number, np.nan))
            for number, value in classes.items()
        },
        means={name: (value, former_means.get(name, np.nan)) for name, value in means.items()},
        labelled=all(report.labelled for report in candidate),
        slices=tuple(name for name, is_paired in zip(slices, compared, strict=False) if is_paired),
        images_left_out=candidate[0].images - len(images),
        classes_left_out=candidate[0].classes_left_out,
        at_limit=max(report.at_limit for report in candidate),
    )


def image_scores(reports: Sequence[ScoreReport]) -> Floats:
    """Return the quality of each image, NaN where no server has an answer."""
    rows = [unpack_qualities(report.qualities) for report in reports]
    table = np.array([row[: min(map(len, rows))] for row in rows], np.float64)
    answered = ~np.isnan(table)
    total, count = np.where(answered, table, 0.0).sum(0), answered.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _classes(reports: Sequence[ScoreReport]) -> dict[int, float]:
    tables = [unpack_classes(report.classes) for report in reports]
    known = sorted({number for table in tables for number in table})
    return {number: _mean([table.get(number, np.nan) for table in tables]) for number in known}


def _means(reports: Sequence[ScoreReport]) -> dict[str, float]:
    named = {
        "iou": [report.iou for report in reports],
        "boundaryIou": [report.boundary_iou for report in reports],
        "recall": [report.recall for report in reports],
        "ap": [report.ap for report in reports],
        "ece": [report.ece for report in reports],
    }
    measured = {name: [value for value in values if value is not None] for name, values in named.items()}
    return {name: _mean(values) for name, values in measured.items() if values}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


SOURCE: Final = VerdictSource(verdicts=_verdicts, signal=_signal)
