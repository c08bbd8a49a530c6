"""Slow requests: the candidate's share against stable's at the same time, and against the SLO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.words import compared, outcome_of
from segserve_operator.core.statistics.exceedance import Exceedance, ExceedanceState, Stream

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Floats, Judgement, Look

RELATIVE: Final = 0.75
"""Part of the evidence for the comparison with stable, where the SLO names latencies too; the rest is for those."""
WARM_UP_S: Final = 20.0
"""Caches and connections of a new server are cold for so long; its first answers prove nothing."""
ODDS: Final = (1.1, 1.4, 2.5)
"""Alternatives that are bet on besides: odds of being slow, against those allowed."""
SWINGS: Final = {0.5: 0.04, 0.95: 0.06, 0.99: 0.1}
"""Healthy servers have better and worse half minutes of their own; their shares of slow requests (by quantile) swing so
much, in parts of themselves: the tail more than the median."""
P99_PART: Final = 0.2
"""The tolerance of slow requests is meant for the slowest twentieth; among the slowest hundredth it is so much less."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Breaches where more of the candidate's requests are slow than of stable's, or than the SLO and stable allow.

    Slow is `stretch` times stable's own median, p95 or p99 (of the past minutes), or what the SLO says: milliseconds by
    quantile, which count as the next edge. `tolerance` is the share of requests that may be slow beyond stable's.
    """

    tolerance: float
    stretch: float = 1.1
    slo_ms: tuple[tuple[float, float], ...] = ()
    edges: tuple[float, ...] = EDGES_MS

    @property
    def test(self) -> Exceedance:
        """What the counts go to: relative streams first."""
        relative = RELATIVE if self.slo_ms else 1.0
        tolerances = {0.5: self.tolerance, 0.95: self.tolerance, 0.99: P99_PART * self.tolerance}
        streams = [
            Stream(
                relative / len(tolerances),
                tolerance=tolerance,
                quantile=quantile,
                stretch=self.stretch,
                swing=SWINGS[quantile],
            )
            for quantile, tolerance in tolerances.items()
        ]
        part = (1.0 - relative) / max(len(self.slo_ms), 1)
        for quantile, milliseconds in self.slo_ms:
            at = int(np.searchsorted(self.edges, milliseconds * (1 - 1e-9))) + 1
            streams.append(Stream(part, floor=1.0 - quantile, at=min(at, len(self.edges)), swing=SWINGS[quantile]))
        promised = [quantile for quantile, _ in self.slo_ms]
        counted = 3 + promised.index(max(promised, key=_strictest)) if promised else 1
        return Exceedance(self.edges, tuple(streams), counted=counted, warm_up_s=WARM_UP_S, odds=ODDS)

    def start(self, shape: tuple[int, ...] = ()) -> ExceedanceState:
        """Return the state before any look."""
        return self.test.start(shape)

    def update(self, state: ExceedanceState, look: Look) -> ExceedanceState:
        """Return the state after one more look; its latencies must have this gate's edges."""
        return self.test.update(state, look.latencies, look.seconds)

    def judge(self, state: ExceedanceState) -> Judgement:
        """Return what all looks together amount to."""
        return self.test.judge(state)

    def explain(self, state: ExceedanceState, level: float) -> Verdict:
        """Say it of one rollout: p50 and p95 of both."""
        judged = self.judge(state)
        outcome, reason, progress = outcome_of(judged, level)
        numbers = {
            f"{role}_p{round(100 * quantile)}_ms": self._quantile(state.total[index], quantile)
            for index, role in ((STABLE, "stable"), (CANDIDATE, "candidate"))
            for quantile in (0.5, 0.95, 0.99)
        }
        numbers |= {"stable_requests": float(state.total[STABLE].sum()), "harm": float(judged.harm)}
        numbers |= {"candidate_requests": float(state.total[CANDIDATE].sum()), "excess": float(judged.excess)}
        message = compared(
            f"p50 {numbers['candidate_p50_ms']:.3g} ms and p95 {numbers['candidate_p95_ms']:.3g} ms",
            f"{numbers['stable_p50_ms']:.3g} and {numbers['stable_p95_ms']:.3g} ms",
            judged,
            level,
        )
        return Verdict("latency", outcome, reason, message, progress, numbers)

    def _quantile(self, bins: Floats, quantile: float) -> float:
        """Return the upper edge (ms) of the bin that holds the quantile; 0 without data, the last edge at most."""
        if bins.sum() <= 0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(bins), quantile * bins.sum()))
        return self.edges[min(index, len(self.edges) - 1)]


def _strictest(quantile: float) -> float:
    """Order the SLO's latencies by how well they tell a bad request: p95, else p99, else p50."""
    return {0.95: 2.0, 0.99: 1.0}.get(quantile, 0.0)
