"""The gate `goldenQuality`: the candidate's scores on golden images, against limits and against stable.

The limits (minimum scores and the largest drop of a class) are plain rules over this set of images and take no alpha.
Whether the candidate is worse in general is tested on single images, paired with stable's answers to the same ones, by
`statistics.paired`: with differences of standard deviation .05 and 1 point tolerated, 100 images prove a drop of 5
points, 50 one of 10, and 20 one of 20. Odds of 20 to 1 without proof are Undecided: that concerns one in twenty
candidates at the edge of the tolerance and hardly any that equal stable. Replaying the same images adds no evidence, so
every replay is judged by itself.

If images say where they come from, each such slice with enough of them is tested in the same way. Half of the gate's
share of alpha is then for all images together, and the other half is divided among the slices (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import GoldenQualityGate, RolloutPolicy
from segserve_operator.core.evidence import Floats
from segserve_operator.core.gates.base import CheckedGateType, Outcome, Verdict, no_answer
from segserve_operator.core.gates.checks import CheckResult, Scores
from segserve_operator.core.statistics.paired import FEWEST, proved_worse, worse

NAME: Final = "goldenQuality"
SAME: Final = 1.0 - 1e-6
"""Score of an answer that is the expected one."""
SUSPECT: Final = math.log(20.0)
"""Evidence from which on the gate is Undecided instead of Pass, so that a person looks."""


def judge(spec: GoldenQualityGate, scores: CheckResult, policy: RolloutPolicy, level: float) -> Verdict:
    """Judge one replay: minimum scores, then each class's drop, then the paired test at `level`, its share of alpha."""
    if not isinstance(scores, Scores) or not scores.means:
        return no_answer(NAME, scores)
    numbers = _numbers(scores)
    missing = [name for name, floor, seen in _floors(spec, scores) if floor is not None and math.isnan(seen)]
    broken = [
        f"{name} is {seen:.3f}; at least {floor:.3f} is required"
        for name, floor, seen in _floors(spec, scores)
        if floor is not None and seen < floor
    ]
    if broken:
        return Verdict(NAME, Outcome.BREACH, "BelowFloor", _about(scores, broken[0]), 1.0, numbers)
    error, most = scores.means.get("ece", (math.nan, math.nan))[0], spec.max_calibration_error
    if most is not None and math.isnan(error):
        missing.append("ece")
    elif most is not None and error > most:
        message = f"ece is {error:.3f}; at most {most:.3f} is allowed"
        return Verdict(NAME, Outcome.BREACH, "Miscalibrated", _about(scores, message), 1.0, numbers)
    if dropped := _dropped(spec, scores):
        return Verdict(NAME, Outcome.BREACH, "ClassLost", _about(scores, dropped), 1.0, numbers)
    if missing:
        message = f"{' and '.join(missing)} cannot be measured on these images"
        return Verdict(NAME, Outcome.UNDECIDED, "NotMeasured", _about(scores, message), numbers=numbers)
    slices = _slices(scores)
    if not slices:
        return _paired(scores, policy.tolerance.iou, level, numbers)
    for name, pairs in slices.items():
        means = pairs.mean(0)
        numbers |= {f"slice.{name}": float(means[0]), f"slice.{name}.stable": float(means[1])}
    verdict = _paired(scores, policy.tolerance.iou, level / 2, numbers)
    if verdict.outcome is Outcome.BREACH:
        return verdict
    return _sliced(scores, slices, policy.tolerance.iou, level / 2, verdict)


def _slices(scores: Scores) -> dict[str, Floats]:
    """Return the pairs [n, 2] of (candidate, stable) of each slice that has enough images to be tested."""
    of_slice: dict[str, list[tuple[float, float]]] = {}
    for name, pair in zip(scores.slices, scores.paired, strict=False):
        if name:
            of_slice.setdefault(name, []).append(pair)
    return {name: np.array(pairs) for name, pairs in sorted(of_slice.items()) if len(pairs) >= FEWEST}


def _sliced(scores: Scores, slices: dict[str, Floats], tolerance: float, level: float, otherwise: Verdict) -> Verdict:
    """Return the verdict on the slice with the most evidence if it is worse, else the verdict on all images."""
    found = {name: proved_worse(pairs[:, 0] - pairs[:, 1], pairs[:, 1], tolerance) for name, pairs in slices.items()}
    worst = max(found, key=lambda name: found[name])
    bound = math.log(len(slices) / level) if level > 0 else math.inf
    differences = slices[worst][:, 0] - slices[worst][:, 1]
    message = (
        f"mean quality of slice {worst!r} changes by {float(differences.mean()):+.4f} on {len(differences)} images "
        f"({-tolerance:+.4f} is tolerated)"
    )
    if found[worst] >= bound:
        return Verdict(NAME, Outcome.BREACH, "WorseInSlice", _about(scores, message), 1.0, otherwise.numbers)
    suspected = worse(differences, tolerance) >= SUSPECT + math.log(len(slices))
    if suspected and otherwise.outcome is Outcome.PASS:
        progress = min(max(found[worst] / bound, otherwise.progress), 1.0)
        message = _about(scores, f"{message}, too few to prove it")
        return Verdict(NAME, Outcome.UNDECIDED, "LooksWorse", message, progress, otherwise.numbers)
    return otherwise


def _paired(scores: Scores, tolerance: float, level: float, numbers: dict[str, float]) -> Verdict:
    if not scores.paired:
        message = "stable answered none of the images: only the minimum scores are judged"
        return Verdict(NAME, Outcome.PASS, "WithoutStable", _about(scores, message), numbers=numbers)
    differences = np.array([candidate - stable for candidate, stable in scores.paired])
    stable = np.array([each for _, each in scores.paired])
    if not scores.labelled and (stable + differences).min() >= SAME > stable.min():
        message = "the expected answers are the candidate's own, so they say nothing of quality: use labels"
        return Verdict(NAME, Outcome.UNDECIDED, "OwnAnswers", _about(scores, message), numbers=numbers)
    evidence = proved_worse(differences, stable, tolerance)
    bound = -math.log(level) if level > 0 else math.inf
    progress = min(max(evidence / bound, 0.0), 1.0)
    change = float(differences.mean())
    numbers = {**numbers, "meanChange": change, "evidence": evidence, "bound": bound}
    message = f"mean quality changes by {change:+.4f} on {len(differences)} images ({-tolerance:+.4f} is tolerated)"
    if evidence >= bound:
        return Verdict(NAME, Outcome.BREACH, "WorseThanStable", _about(scores, message), 1.0, numbers)
    if worse(differences, tolerance) >= SUSPECT:
        message = f"{message}, too few to prove it"
        return Verdict(NAME, Outcome.UNDECIDED, "LooksWorse", _about(scores, message), progress, numbers)
    return Verdict(NAME, Outcome.PASS, "NoWorse", _about(scores, message), progress, numbers)


def _floors(spec: GoldenQualityGate, scores: Scores) -> Iterator[tuple[str, float | None, float]]:
    """Yield name, limit and the candidate's score; a score that cannot be measured is NaN."""
    for metric, floor in (
        ("iou", spec.min_iou),
        ("boundaryIou", spec.min_boundary_iou),
        ("recall", spec.min_recall),
        ("ap", spec.min_ap),
    ):
        yield metric, floor, scores.means.get(metric, (math.nan, math.nan))[0]
    for name, (candidate, _) in scores.classes.items():
        yield f"iou of class {name!r}", spec.min_class_iou, candidate


def _dropped(spec: GoldenQualityGate, scores: Scores) -> str:
    """Return a message about the class with the largest drop if that exceeds the limit, else an empty string."""
    drops = {name: stable - candidate for name, (candidate, stable) in scores.classes.items()}
    worst = max(drops, key=lambda name: -math.inf if math.isnan(drops[name]) else drops[name], default="")
    if not worst or not drops[worst] > spec.max_class_drop:
        return ""
    candidate, stable = scores.classes[worst]
    scores_text = f"iou of class {worst!r} is {candidate:.3f}, and {stable:.3f} for stable"
    return f"{scores_text}; it may fall by {spec.max_class_drop:.3f}"


def _about(scores: Scores, message: str) -> str:
    if scores.classes_left_out:
        message = f"{message}; {scores.classes_left_out} further classes count in the means and are not judged each"
    if scores.images_left_out:
        message = f"{message}; {scores.images_left_out} further images count in the means alone"
    if scores.at_limit:
        message = f"{message}; {scores.at_limit} answers reached the limit (maxDetections of output or a stage)"
    return message if scores.labelled else f"{message}; measured against expected answers, not labels"


def _numbers(scores: Scores) -> dict[str, float]:
    """Return the numbers behind the verdict: means and classes of the candidate, and of stable if it answered."""
    numbers = {"images": float(len(scores.paired)), "labelled": float(scores.labelled)}
    for prefix, pairs in (("", scores.means), ("class.", scores.classes)):
        for name, (candidate, stable) in pairs.items():
            numbers[f"{prefix}{name}"] = candidate
            numbers[f"{prefix}{name}.stable"] = stable
    return {name: number for name, number in numbers.items() if not math.isnan(number)}


GATE: Final = CheckedGateType(GoldenQualityGate, judge, purpose="golden", is_rule=False)
