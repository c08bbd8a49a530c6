"""The mixture sequential probability ratio test of two shares (Johari et al. 2015), looked at with every scrape.

log Lambda = log sqrt(V / (V + tau^2)) + tau^2 d^2 / (2 V (V + tau^2)), d the difference of shares, V its variance by
the pooled share; ends where d > 0 and Lambda >= 1 / alpha. Its shares are sums since the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bench.rollout.world import CANDIDATE, STABLE

if TYPE_CHECKING:
    from bench.rollout.world import Floats

ALPHA: Final = 0.05
TAUS: Final = (0.01, 0.03)
"""Of errors and of slow requests: the differences that are expected."""


def log_ratio(bad: Floats, requests: Floats, tau: float) -> Floats:
    """Return log Lambda, negative infinity where the candidate is not worse; counts [runs, scrapes, 2] since start."""
    n_c, n_s = requests[..., CANDIDATE], requests[..., STABLE]
    both = (n_c > 0) & (n_s > 0)
    pooled = (bad.sum(-1) + 0.5) / (requests.sum(-1) + 1.0)
    inverse = 1 / np.maximum(n_c, 1) + 1 / np.maximum(n_s, 1)
    variance = pooled * (1 - pooled) * inverse
    d = bad[..., CANDIDATE] / np.maximum(n_c, 1) - bad[..., STABLE] / np.maximum(n_s, 1)
    ratio = 0.5 * np.log(variance / (variance + tau**2)) + tau**2 * d**2 / (2 * variance * (variance + tau**2))
    found: Floats = np.where(both & (d > 0), ratio, -np.inf)
    return found


def rolled_back_s(ratios: list[Floats], scrape_s: float, log_bound: float) -> Floats:
    """Return when each run's first ratio passes the bound, inf where none does; each [runs, scrapes]."""
    proved = np.logical_or.reduce([each >= log_bound for each in ratios])
    found: Floats = np.where(proved.any(1), (proved.argmax(1) + 1) * scrape_s, np.inf)
    return found
