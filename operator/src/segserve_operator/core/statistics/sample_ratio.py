"""Sequential test whether the gateways split requests by the weights written.

A mixture of likelihood ratios of other odds than those written. Requests of one caller may be correlated, so the root
of the ratio is taken, which only weakens the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, Floats
from segserve_operator.core.statistics.blocks import redistributed, summed

TIMES: Final = (0.01, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0)
"""Odds of going to the candidate relative to those written, each with its own wealth; 1 bets nothing."""
SWITCH: Final = 0.01
"""Part of the wealth that is redistributed per window, so that a split that goes wrong late is detected as well."""
SLACK: Final = 0.05
"""Tolerance as a part of the weight: gateways adopt a weight at slightly different times."""
DISPERSION: Final = 3.0
"""Number of requests that count as one."""
SMALLEST: Final = 1e-3
_LOG_TIMES: Final = np.log(np.array(TIMES))
_EXTRA: Final = np.array(TIMES) - 1.0
_SLACK: Final = 1.0 + SLACK * np.sign(_EXTRA)


@dataclass(frozen=True, slots=True)
class SampleRatioState:
    """wealth [..., bets]: log."""

    wealth: Floats


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """The test of written weights against counted requests."""

    def start(self, shape: tuple[int, ...] = ()) -> SampleRatioState:
        """Return the state before any window."""
        return SampleRatioState(np.full((*shape, len(TIMES)), -np.log(len(TIMES))))

    def update(self, state: SampleRatioState, weight_percent: Floats, requests: Floats) -> SampleRatioState:
        """Add a window: the weight in force during all of it [...], and requests [..., 2] of (stable, candidate).

        Leave out windows in which a weight changed, and the seconds that gateways need to adopt it.
        """
        share = np.asarray(weight_percent)[..., None] / 100.0 * _SLACK
        written = np.minimum(np.maximum(share, SMALLEST), 1.0 - SMALLEST)
        total, candidate = requests.sum(-1)[..., None], requests[..., CANDIDATE, None]
        ratio = candidate * _LOG_TIMES - total * np.log1p(written * _EXTRA)
        dealt = redistributed(state.wealth + ratio / DISPERSION, SWITCH)
        return SampleRatioState(np.where(total > 0, dealt, state.wealth))

    def evidence(self, state: SampleRatioState) -> Floats:
        """Return the log evidence [...] that the split differs from the one written."""
        total: Floats = summed(state.wealth)
        return total
