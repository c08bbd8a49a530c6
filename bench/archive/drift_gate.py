"""False alarms of the gate `drift`, and requests until a difference is found: `python -m bench.archive.drift_gate`.

Two revisions answer simulated images of four cameras, whose scenes last some twenty images: a brightness, and coins of
some area in most of them. In crowded traffic one of 33 images has 200 tiny coins of low scores. The gateway gives the
candidate its share at random. The gate judges after each report, for hundreds of rollouts of equal revisions and fifty
of each difference. The figures go to bench/out/drift_gate.json, and a table is printed (five minutes).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.platform import ROOT
from bench.rollout.report import markdown_table
from segserve_operator.api.rollout_policy import DriftGate, RolloutPolicy
from bench.rollout.outcomes import wilson
from segserve_operator.core.drift.comparison import RevisionComparison
from segserve_operator.core.drift.detector import Histograms
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.gates.drift import judge

OUT: Final = ROOT / "bench/out/drift_gate.json"
LEVEL: Final = 0.0025
"""A quarter of the default alpha, as for one of four gates."""
GATE: Final = DriftGate.model_validate({"onBreach": "Rollback"})
EQUAL_RUNS: Final = 300
RUNS: Final = 50
REPORTS: Final = 400
SCENE_IMAGES: Final = 20
CAMERAS: Final = 4
PER_REPORT: Final = 100
"""Images of both revisions between two reports."""
CROWDED: Final = 1 / 33


@dataclass(frozen=True, slots=True)
class Answering:
    """How a revision answers: the part of coins that it finds, how large they are to it, and how much surer it is."""

    says: str
    found: float = 1.0
    scale: float = 1.0
    surer: float = 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """The candidate's share of requests, and the part of images that are crowded."""

    share: float
    crowded: float = 0.0

    @property
    def says(self) -> str:
        """The traffic in words."""
        return f"{100 * self.share:.0f} %" + (", some images crowded" if self.crowded else "")


EQUAL: Final = Answering("equal revisions")
DIFFERENT: Final = (
    Answering("finds no coin in half of the images", found=0.5),
    Answering("finds no coin in a quarter of the images", found=0.75),
    Answering("finds coins twice as large", scale=2.0),
    Answering("finds coins 1.5 times as large", scale=1.5),
    Answering("has scores lower by 0.2", surer=-0.2),
)
TRAFFICS: Final = (Traffic(0.25), Traffic(0.05), Traffic(0.05, CROWDED))


@dataclass(slots=True)
class Counts:
    """What one server has counted."""

    totals: dict[str, NDArray[np.float64]]

    def add(
        self,
        light: NDArray[np.float64],
        coins: NDArray[np.int64],
        area: NDArray[np.float64],
        scores: NDArray[np.float64],
    ) -> None:
        """Count images: brightness and number of coins found of each, and of those with coins their area and score."""
        shown = int((coins > 0).sum())
        parts = {
            "brightness": np.histogram(light, 10, (0.0, 1.0))[0],
            "emptyAnswers": np.array((shown, len(coins) - shown)),
            "classShare:coin": np.array((len(coins) - shown, shown)),
            "area:coin": np.histogram(area, 10, (0.0, 1.0))[0],
            "confidence": np.histogram(scores, 10, (0.0, 1.0))[0],
            "score:coin": np.histogram(np.repeat(scores, coins[coins > 0]), 10, (0.0, 1.0))[0],
        }
        for name, each in parts.items():
            self.totals[name] = self.totals.get(name, np.zeros(len(each))) + each

    def report(self) -> Mapping[str, Histograms]:
        """Return the counts by server."""
        return {"server": {name: tuple(each.tolist()) for name, each in self.totals.items() if each.any()}}


def rollout(candidate: Answering, traffic: Traffic, random: np.random.Generator) -> tuple[str, int]:
    """Return the reason that ends a rollout, or the last one, and the images that the candidate answered until then."""
    sides = ((Counts({}), candidate), (Counts({}), EQUAL))
    comparison, answered, reason = RevisionComparison(), 0, ""
    for number in range(REPORTS + 1):
        scenes = PER_REPORT // SCENE_IMAGES + CAMERAS
        scene = np.sort(random.integers(scenes, size=PER_REPORT))
        light = np.clip(random.uniform(0.2, 0.8, scenes)[scene] + random.normal(0, 0.03, PER_REPORT), 0, 0.999)
        coins, size = random.integers(0, 12, scenes)[scene], random.uniform(0.05, 0.5, scenes)[scene]
        score = random.uniform(0.6, 0.95, scenes)[scene]
        crowded = random.random(PER_REPORT) < traffic.crowded
        coins, size, score = np.where(crowded, ((200,), (0.01,), (0.3,)), (coins, size, score))
        is_candidate = random.random(PER_REPORT) < traffic.share
        answered += int(is_candidate.sum())
        for (counts, each), chosen in zip(sides, (is_candidate, ~is_candidate), strict=True):
            found = np.where(random.random(PER_REPORT) < each.found, coins, 0)[chosen].astype(int)
            shows = found > 0
            area = size[chosen][shows] * each.scale * random.uniform(0.7, 1.3, int(shows.sum()))
            scores = np.clip(score[chosen][shows] + each.surer, 0, 0.999)
            counts.add(light[chosen], found, np.clip(area, 0, 0.999), scores)
        own, stable = (counts.report() for counts, _ in sides)
        comparison = comparison.with_reports(own, stable, GATE.tolerance)
        if number:
            result = CheckResult("drift", 0.0, answers=comparison, weight=round(100 * traffic.share))
            reason = judge(GATE, result, RolloutPolicy(), LEVEL).reason
        if reason in {"AnswersDiffer", "AnswersAlike"}:
            break
    return reason, answered


def result(candidate: Answering, traffic: Traffic, runs: int) -> dict[str, Any]:
    """Return how rollouts end, and after how many images of the candidate."""
    ends = [rollout(candidate, traffic, np.random.default_rng((run, 7))) for run in range(runs)]
    found = [images for reason, images in ends if reason == "AnswersDiffer"]
    passed = [images for reason, images in ends if reason == "AnswersAlike"]
    return {"says": candidate.says, "traffic": traffic.says, "runs": runs, "found": found, "passed": passed}


def report(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    rows = []
    for each in results:
        columns = [
            f"{len(images)}" + (f", after {np.median(images):.0f} ({min(images)} to {max(images)})" if images else "")
            for images in (each["found"], each["passed"])
        ]
        low, high = (100 * bound for bound in wilson(len(each["found"]), each["runs"]))
        columns[0] += f" [{low:.2g} to {high:.2g} %]" if each["says"] == EQUAL.says else ""
        rows.append([each["says"], each["traffic"], str(each["runs"]), *columns])
    print(markdown_table(["candidate", "traffic", "rollouts", "said to differ", "said to be alike"], rows))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    results = []
    for traffic in TRAFFICS:
        for candidate in (*DIFFERENT, EQUAL):
            results.append(result(candidate, traffic, EQUAL_RUNS if candidate is EQUAL else RUNS))
            print(traffic.says, candidate.says, len(results[-1]["found"]), len(results[-1]["passed"]), flush=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")
    report(results)


if __name__ == "__main__":
    main()
