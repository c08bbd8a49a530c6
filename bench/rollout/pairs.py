"""Simulated pairs: in Shadow, a comparator asks both revisions the same request at the same moment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.rollout.world import CANDIDATE, EDGES_MS, MEDIAN_MS, SPREAD, STABLE, World
from segserve_operator.core.evidence import RATIOS, EvidenceWindow, Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.rollout.world import Floats, Setting

OWN: Final = 0.5
"""Part of the variance of log latencies that a pair does not share; the rest is the image's, the same for both.

Whether a request fails, pauses, bursts and slow servers are each revision's own. So less cancels than in reality, where
one image that fails on one revision mostly fails on the other."""


class PairedWorld(World):
    """Runs of one setting whose requests can be asked of both revisions."""

    def __init__(
        self, setting: Setting, runs: int, rng: np.random.Generator, span_s: float = 600.0, own: float = OWN
    ) -> None:
        super().__init__(setting, runs, rng, span_s)
        self._own = own
        self._around: tuple[float, tuple[Floats, Floats]] | None = None

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with these runs alone."""
        super().keep(which)
        self._around = None

    def _surroundings(self, now_s: float, seconds: float) -> tuple[Floats, Floats]:
        # A moment is the same for callers' requests and for pairs.
        if self._around is None or self._around[0] != now_s:
            self._around = now_s, super()._surroundings(now_s, seconds)
        return self._around[1]

    def pairs(self, now_s: float, seconds: float, rate: Floats) -> tuple[EvidenceWindow, NDArray[np.bool_]]:
        """Return what is counted of pairs in the next seconds, `rate` [runs] a second, and which runs are measured."""
        callers = self.rate(now_s) * seconds
        errors, shift = self._surroundings(now_s, seconds)
        measured, _ = self._measured(now_s, seconds)
        counts = self._rng.poisson(rate * seconds)
        runs, width = len(counts), max(int(counts.max()), 1)
        asked = np.arange(width) < counts[:, None]
        failed = self._rng.random((runs, width, 2)) < np.broadcast_to(errors, (runs, 2))[:, None]
        logs = self._logs(now_s, seconds, np.broadcast_to(shift, (runs, 2)), width)
        answered = asked & ~failed.any(-1)
        latencies = [_counted(np.exp(logs[..., role]) * MEDIAN_MS, EDGES_MS, asked) for role in (STABLE, CANDIDATE)]
        kinds = 2.0 * failed[..., STABLE] + failed[..., CANDIDATE]
        pairs = replace(
            Pairs.nothing((runs,)),
            failed=_counted(kinds, (1, 2, 3), asked).reshape(runs, 2, 2),
            ratios=_counted(np.exp(logs[..., CANDIDATE] - logs[..., STABLE]), RATIOS, answered),
            callers=callers,
        )
        errors_of_both = (failed & asked[..., None]).sum(1).astype(float)
        requests = np.stack([counts, counts], -1).astype(float)
        window = EvidenceWindow(np.full(runs, seconds), requests, errors_of_both, np.stack(latencies, 1), pairs)
        return window, measured

    def _logs(self, now_s: float, seconds: float, shift: Floats, width: int) -> Floats:
        """Return the logs of latencies, in medians of a healthy request, [runs, width, 2]."""
        runs, fault, large = len(shift), self.setting.fault, self.setting.condition.large
        own = self._rng.standard_normal((runs, width, 2)) * np.sqrt(self._own)
        image = self._rng.standard_normal((runs, width, 1)) * np.sqrt(1 - self._own)
        factor = np.zeros((runs, width, 2))
        for share, times in self._slower(now_s, seconds):
            drawn = self._rng.random((runs, width, 2))
            if large and times == self.setting.condition.large_slower:
                drawn[..., CANDIDATE] = drawn[..., STABLE]  # an image is as large for both
            factor = np.where(drawn < np.broadcast_to(share, (runs, 2))[:, None], np.log(times), factor)
        if tail := fault.tail_at(now_s):
            slow = self._rng.random((runs, width)) < tail
            factor[..., CANDIDATE] = np.where(slow, np.log(fault.tail_slower), factor[..., CANDIDATE])
        logs: Floats = shift[:, None] + factor + SPREAD * (own + image)
        return logs


def _counted(values: Floats, edges: tuple[float, ...], which: NDArray[np.bool_]) -> Floats:
    """Return how many of each run's values [runs, width] are in each bin, [runs, edges + 1]."""
    runs, bins = len(values), len(edges) + 1
    at = np.searchsorted(np.array(edges, float), values, side="right") + bins * np.arange(runs)[:, None]
    found: Floats = np.bincount(at[which], minlength=runs * bins).reshape(runs, bins).astype(float)
    return found
