"""Failed requests: the candidate's share against stable's at the same time, and against the SLO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.words import compared, outcome_of
from segserve_operator.core.statistics.exceedance import Exceedance, ExceedanceState, Stream

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Floats, Judgement, Look

SWING: Final = 0.3
"""Healthy servers have better and worse half minutes of their own; their error rates differ so much of themselves."""


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Breaches where the candidate fails more often than stable by `tolerance`, or than both stable and `slo_rate`.

    Both are shares of requests, 0 to 1. Both revisions beyond `slo_rate` are an incident.
    """

    slo_rate: float
    tolerance: float

    @property
    def test(self) -> Exceedance:
        """What the counts go to: bin 0 holds the answered requests, bin 1 the failed ones."""
        beside_stable = Stream(0.75, tolerance=self.tolerance, swing=SWING)
        return Exceedance((1.0,), (beside_stable, Stream(0.25, floor=self.slo_rate, swing=SWING)))

    def start(self, shape: tuple[int, ...] = ()) -> ExceedanceState:
        """Return the state before any look."""
        return self.test.start(shape)

    def update(self, state: ExceedanceState, look: Look) -> ExceedanceState:
        """Return the state after one more look."""
        bins: Floats = np.stack([look.requests - look.errors, look.errors], -1)
        return self.test.update(state, bins, look.seconds)

    def judge(self, state: ExceedanceState) -> Judgement:
        """Return what all looks together amount to."""
        return self.test.judge(state)

    def explain(self, state: ExceedanceState, level: float) -> Verdict:
        """Say it of one rollout: the shares of failed requests of both."""
        judged = self.judge(state)
        outcome, reason, progress = outcome_of(judged, level)
        requests, errors = state.total.sum(-1), state.total[..., 1]
        rates = errors / np.maximum(requests, 1.0)
        numbers = {
            "stable_requests": float(requests[STABLE]),
            "stable_errors": float(errors[STABLE]),
            "candidate_requests": float(requests[CANDIDATE]),
            "candidate_errors": float(errors[CANDIDATE]),
            "harm": float(judged.harm),
            "excess": float(judged.excess),
        }
        candidate, stable = (
            f"{100 * rates[role]:.3g} % of {requests[role]:,.0f} requests" for role in (CANDIDATE, STABLE)
        )
        message = compared(f"{candidate} failed", stable, judged, level)
        return Verdict("errorRate", outcome, reason, message, progress, numbers)
