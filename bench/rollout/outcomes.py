"""What came of rollouts, and the figures that are reported of it, with their 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.stats import binomtest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.rollout.world import Floats

_DIGITS: Final = 5
Z_95: Final = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95 %."""


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a share that was `count` of `total` (Wilson 1927); 0 to 1 of none."""
    if not total:
        return 0.0, 1.0
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Of each run: when it was rolled back (inf: never), when it was promoted (inf: never), and its excess bad
    requests until the horizon, those after a promotion among them.
    """

    rolled_back_s: Floats
    promoted_s: Floats
    excess: Floats

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Return the runs of all parts."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def figures(self, onset_s: float = 0.0) -> dict[str, Any]:
        """Return the figures; detection counts from the fault's onset, intervals are (low, high)."""
        back = np.isfinite(self.rolled_back_s)
        promoted = np.isfinite(self.promoted_s) & ~back
        undecided = ~back & ~promoted
        runs = len(back)
        return {
            "runs": runs,
            "rolled_back": share_of(int(back.sum()), runs),
            "promoted": share_of(int(promoted.sum()), runs),
            "undecided": share_of(int(undecided.sum()), runs),
            "detection_s": _quantiles(self.rolled_back_s[back] - onset_s, (0.5, 0.9)),
            "promotion_s": _quantiles(self.promoted_s[promoted], (0.5, 0.9)),
            "excess": _mean(self.excess),
        }


def share_of(count: int, runs: int) -> list[float]:
    """Return a share and its Wilson interval at 95 %."""
    return [round(each, _DIGITS) for each in (count / max(runs, 1), *wilson(count, runs))]


def accounted(excess: Floats, weights: Floats, ended_s: Floats, grid_s: float) -> Floats:
    """Return each run's excess bad requests until its end.

    excess [runs, grid] is what a stretch of the grid costs at weight 1, weights [grid] the shares, ended_s [runs].
    """
    begins_s = np.arange(excess.shape[1]) * grid_s
    shown = np.clip((ended_s[:, None] - begins_s) / grid_s, 0.0, 1.0)
    found: Floats = (excess * weights * shown).sum(1)
    return found


def _quantiles(values: Floats, which: Sequence[float]) -> list[list[float]] | None:
    """Return each quantile with the order statistics that bound it at 95 %; None without values."""
    count = len(values)
    if not count:
        return None
    ordered = np.sort(values)
    found = []
    for q in which:
        half = Z_95 * np.sqrt(count * q * (1 - q))
        at = [q * count, q * count - half, q * count + half]
        found.append([round(float(ordered[int(np.clip(each, 0, count - 1))]), 2) for each in at])
    return found


def _mean(values: Floats) -> list[float]:
    half = Z_95 * float(values.std()) / np.sqrt(len(values))
    middle = float(values.mean())
    return [float(f"{each:.5g}") for each in (middle, middle - half, middle + half)]
