"""The gate `drift`: whether the candidate's answers are distributed as stable's over the same time.

Where images differ, for example since sessions stick to a revision, nothing follows from answers that differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from segserve_operator.api.rollout_policy import DriftGate, RolloutPolicy
from segserve_operator.core.drift.comparison import BLOCK_IMAGES, OVERLOOKED, ComparedHistogram, log_evidence
from segserve_operator.core.gates.base import CheckedGateType, OnBreach, Outcome, Verdict, no_answer, odds
from segserve_operator.core.gates.checks import CheckResult

NAME: Final = "drift"
ANSWERS_DIFFER: Final = "AnswersDiffer"
NOT_COMPARABLE: Final = "NotComparable"
PASS_ODDS: Final = 20.0
_MAX_NAMED: Final = 3


def judge(spec: DriftGate, result: CheckResult, _policy: RolloutPolicy, level: float) -> Verdict:
    """Judge the comparison. Without traffic the gate lets the rollout begin, since only that brings answers."""
    comparison = result.answers
    if comparison is None:
        return _noted(spec, no_answer(NAME, result))
    of_images, of_answers = comparison.compared(images=True), comparison.compared(images=False)
    bound, tolerance, on_breach = -math.log(level), spec.tolerance, OnBreach(spec.on_breach)
    against, images_against = log_evidence(of_answers.values()), log_evidence(of_images.values())
    moved = max((each.difference for each in of_images.values()), default=0.0)
    numbers = {
        "blocks": float(comparison.blocks),
        "evidence": against,
        "difference": max((each.difference for each in of_answers.values()), default=0.0),
        "image_difference": moved,
    }
    says = f"{_described(of_answers)}, in {comparison.blocks} blocks; {odds(against, level)}"
    if images_against >= bound or (against >= bound and moved > tolerance):
        message = f"the images of both differ ({_described(of_images)}), so that their answers may"
        return _noted(spec, Verdict(NAME, Outcome.UNDECIDED, NOT_COMPARABLE, message, numbers=numbers))
    if against >= bound and on_breach is OnBreach.ROLLBACK:
        return Verdict(NAME, Outcome.BREACH, ANSWERS_DIFFER, says, 1.0, numbers)
    if against >= bound:
        if on_breach is OnBreach.HOLD:
            says = f"{says}; a person decides: `segserve rollout skip-gate` goes on, abort stops it"
        return _noted(spec, Verdict(NAME, Outcome.UNDECIDED, ANSWERS_DIFFER, says, 1.0, numbers))
    # What is seldom seen would hold every rollout for long.
    usual = [each for each in of_answers.values() if 2 * each.blocks >= comparison.blocks]
    if usual and min(each.log_alike for each in usual) >= math.log(PASS_ODDS):
        message = f"{says}; no share differs by {100 * (tolerance + OVERLOOKED):.3g} % or more"
        return Verdict(NAME, Outcome.PASS, "AnswersAlike", message, numbers=numbers)
    if result.weight == 0:
        message = "it is judged from the first step on"
        return Verdict(NAME, Outcome.PASS, "NoTraffic", message, numbers=numbers)
    reason = "Uncertain" if of_answers else "TooFewAnswers"
    if not of_answers:
        says = f"no stretch of time yet in which both answered {BLOCK_IMAGES} images"
    progress = min(max(against / bound, 0.0), 1.0) if on_breach is OnBreach.ROLLBACK else 0.0
    return _noted(spec, Verdict(NAME, Outcome.UNDECIDED, reason, says, progress, numbers))


def is_held(verdict: Verdict) -> bool:
    """Return whether a verdict is a proof on which a person has to decide."""
    return verdict.outcome is Outcome.UNDECIDED and verdict.reason == ANSWERS_DIFFER


def _noted(spec: DriftGate, verdict: Verdict) -> Verdict:
    """Return an undecided verdict as `onBreach` has it: a gate that only notes holds nothing."""
    if OnBreach(spec.on_breach) is not OnBreach.NOTE:
        return verdict
    return replace(verdict, outcome=Outcome.PASS, message=f"{verdict.message}; noted only")


def _described(histograms: Mapping[str, ComparedHistogram]) -> str:
    most = sorted(histograms.items(), key=lambda item: -item[1].difference)[:_MAX_NAMED]
    return "; ".join(_describe(name, each) for name, each in most)


def _describe(name: str, histogram: ComparedHistogram) -> str:
    kind, _, of_class = name.partition(":")
    subject = f"{kind} of {of_class}" if of_class else kind
    means = histogram.shares / histogram.blocks
    if means.shape[1] == 1:
        candidate, stable = 100 * (1.0 - means[:, 0])
        return f"{subject} {candidate:.3g} %, stable {stable:.3g} %"
    return f"{subject} differs by {100 * histogram.difference:.3g} % of images"


GATE: Final = CheckedGateType(DriftGate, judge, purpose="answers", is_rule=False)
