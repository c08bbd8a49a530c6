"""Golden images at weight 0: simulated scores, judged by the shipped gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_operator.api.rollout_policy import GoldenQualityGate
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.checks import Scores
from segserve_operator.core.gates.golden_quality import judge
from segserve_operator.core.rollout.policy import alpha_shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.rollout.faults import Fault
    from segserve_operator.api.rollout_policy import RolloutPolicy

IMAGES: Final = 100
STABLE_IOU: Final = (12.0, 3.0)
"""A beta distribution: mean 0.8, standard deviation 0.1."""

CHANGE: Final = 0.05
"""Standard deviation of what a retrained model changes on one image."""

RARE_IMAGES: Final = 5
CLASSES_AN_IMAGE: Final = 4
_ANSWERS: Final = {Outcome.PASS: 1, Outcome.BREACH: -1, Outcome.UNDECIDED: 0}


def golden(fault: Fault, runs: int, policy: RolloutPolicy, rng: np.random.Generator) -> NDArray[np.int8]:
    """Return what the gate says of each run: 1 passed, -1 breached, 0 undecided."""
    stable = rng.beta(*STABLE_IOU, (runs, IMAGES))
    change = rng.normal(-fault.lost_iou, CHANGE, (runs, IMAGES))
    lost = np.zeros((runs, IMAGES))
    if fault.lost_class:
        lost[:, :RARE_IMAGES] = stable[:, :RARE_IMAGES] / CLASSES_AN_IMAGE
    candidate = np.clip(stable + change - lost, 0.0, 1.0)
    rare = candidate[:, :RARE_IMAGES].mean(1) if not fault.lost_class else np.zeros(runs)
    spec, level = GoldenQualityGate(), alpha_shares(policy).get("goldenQuality", 0.0)
    found = np.zeros(runs, np.int8)
    for run in range(runs):
        scores = Scores(
            paired=tuple(zip(candidate[run].tolist(), stable[run].tolist(), strict=True)),
            classes={"rare": (float(rare[run]), float(stable[run, :RARE_IMAGES].mean()))},
            means={"iou": (float(candidate[run].mean()), float(stable[run].mean()))},
        )
        found[run] = _ANSWERS[judge(spec, scores, policy, level).outcome]
    return found
