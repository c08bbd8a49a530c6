"""The gate `errorRate`: the candidate's rate of failed requests against stable's at the same time and the SLO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import ErrorRateGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import CANDIDATE, STABLE, EvidenceWindow, Floats
from segserve_operator.core.gates.base import (
    Edges,
    ExceedanceGate,
    MeasuredGateType,
    Verdict,
    comparison,
    comparison_of_pairs,
    outcome_of,
)
from segserve_operator.core.statistics.discordant import Discordant, failures
from segserve_operator.core.statistics.exceedance import EvidenceStream, Exceedance, ExceedanceState, pairs_of
from segserve_operator.core.statistics.past import StablePast

SHADOW_TOLERATED: Final = float(np.log(150.0))
"""In Shadow: it takes evidence that the harm is more than is tolerated, since waiting for it harms no caller."""
ASSUMED_S: Final = 3.0
"""Seconds of pairs that count as one where stable's past is unknown: one interruption of half a minute is not proof."""
SWING: Final = 0.3
"""Relative difference of error rates between two healthy servers: each has better and worse half minutes."""


@dataclass(frozen=True, slots=True)
class ErrorRate(ExceedanceGate):
    """Breaches if the candidate fails more often than stable by `tolerance`, or than both stable and `slo_rate`.

    Both are shares of requests, 0 to 1. If both revisions exceed `slo_rate`, it is an incident.
    """

    slo_rate: float
    tolerance: float
    test: Exceedance = field(init=False, repr=False, compare=False)
    """The test over bin 0, the answered requests, and bin 1, the failed ones."""

    def __post_init__(self) -> None:
        beside_stable = EvidenceStream(0.75, tolerance=self.tolerance, swing=SWING)
        streams = beside_stable, EvidenceStream(0.25, floor=self.slo_rate, swing=SWING)
        pairs = Discordant((self.tolerance,), (1.0,), assumed_s=ASSUMED_S)
        test = Exceedance((1.0,), streams, shadow_tolerated=SHADOW_TOLERATED, pairs=pairs, surges=True)
        object.__setattr__(self, "test", test)

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> ExceedanceState:
        """Return the state before any window; `past` is stable's."""
        return self.test.start(shape, past.errors if past is not None else None)

    def informed(self, state: ExceedanceState, past: StablePast) -> ExceedanceState:
        """Return the state with what stable's past shows by now."""
        return self.test.informed(state, past.errors)

    def update(self, state: ExceedanceState, window: EvidenceWindow) -> ExceedanceState:
        """Return the state after one more window."""
        bins: Floats = np.stack([window.requests - window.errors, window.errors], -1)
        if window.pairs is None:
            return self.test.update(state, bins, window.seconds)
        counts = failures(window.pairs.failed)
        # One comparison, for both nulls and for the certificate.
        return self.test.update_pairs(state, bins, window.seconds, np.stack([counts] * 3, -2))

    def explain(self, state: ExceedanceState, level: float) -> Verdict:
        """Return the verdict on one rollout, with the rates of failed requests of both revisions."""
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
        message = comparison(f"{candidate} failed", stable, judged, level)
        if state.shadowed > 0:
            message, asked = comparison_of_pairs(
                pairs_of(state), ("the candidate alone failed", "stable alone"), judged, level
            )
            numbers |= asked
        return Verdict("errorRate", outcome, reason, message, progress, numbers)


def _build(_: ErrorRateGate, slo: Slo, policy: RolloutPolicy, _edges: Edges) -> ErrorRate:
    return ErrorRate(slo.error_percent / 100, policy.tolerance.error_percent / 100)


GATE: Final = MeasuredGateType(ErrorRateGate, _build, lambda policy: policy.tolerance.error_percent / 100)
