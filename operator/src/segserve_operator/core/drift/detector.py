"""Sequential test whether windows of counted answers still match a reference's, with a rate of false alarms.

Every histogram is seen as the shares of its observations up to each edge (the empirical distribution function). For
each edge the reference has the least and the largest share of its windows. The null hypothesis: given
all windows before, the expected share of the next window is within that range, or beyond it by at most a tolerance.
Nothing is assumed of the observations within a window, which may depend on each other in any way (frames of one camera
do), and windows may depend on each other as far as the reference's range covers it (day and night, if it has both).

A bet on the edge that was farthest outside before multiplies its wealth by `1 + stake (share / limit - 1)`, which no
bet wins on average under the null hypothesis (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting", with a mixture of stakes). As drift may begin at any time, wealth below 1 is restored: the CUSUM
e-detector of Shin, Ramdas and Rinaldo (2024), "E-detectors: a nonparametric framework for sequential change detection",
whose alarms at a threshold c come at most once in c windows on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats

STAKES: Final = (1 / 8, 1 / 2, 15 / 16)
"""Parts of the wealth that are staked, by bets of their own."""
MEMORY: Final = 0.4
"""Weight of the newest window in the recent shares: about the last four windows count."""
RECOVERED: Final = 6
"""Windows in a row whose recent shares are within the range, after which drift is over."""
SMALLEST_SHARE: Final = 1e-4
"""Share that stands for an empty bucket in divergences, as usual for PSI."""

Histograms = Mapping[str, tuple[float, ...]]
"""Observations by bucket, by the histogram's name."""


@dataclass(frozen=True, slots=True)
class ReferenceRange:
    """One histogram of the reference: all its observations, and the range of cumulated shares of its windows."""

    counts: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    windows: int = 1

    def with_window(self, counts: Sequence[float]) -> ReferenceRange:
        """Return the reference with one more window."""
        edges = cumulated(counts)
        return ReferenceRange(
            tuple(a + b for a, b in zip(self.counts, counts, strict=True)),
            tuple(np.minimum(self.low, edges).tolist()),
            tuple(np.maximum(self.high, edges).tolist()),
            self.windows + 1,
        )


def first_window(counts: Sequence[float]) -> ReferenceRange:
    """Return the reference of a single window."""
    edges = tuple(cumulated(counts).tolist())
    return ReferenceRange(tuple(counts), edges, edges)


@dataclass(frozen=True, slots=True)
class Detector:
    """The state of the test of one histogram: log wealth by stake, and the mean of recent cumulated shares.

    `windows` have been seen; the last `inside` of them were within the reference's range.
    """

    log_wealth: tuple[float, ...] = (0.0,) * len(STAKES)
    mean: tuple[float, ...] = ()
    windows: int = 0
    inside: int = 0
    drifting: bool = False

    def updated(self, reference: ReferenceRange, counts: Sequence[float], tolerance: float, bound: float) -> Detector:
        """Return the detector after a window; it alarms where the log evidence reaches `bound`.

        An alarm ends once the recent shares have been within the range for `RECOVERED` windows.
        """
        shares, limits = cumulated(counts), _limits(reference, tolerance)
        # Capped, so that drift that is over is soon known to be.
        most = bound + math.log(len(STAKES))
        wealth = np.minimum(np.maximum(self.log_wealth, 0.0) + _payoffs(self, limits, shares), most)
        former, weight = np.array(self.mean) if self.mean else shares, max(MEMORY, 1.0 / (self.windows + 1))
        mean = (1.0 - weight) * former + weight * shares
        inside = self.inside + 1 if (_sides(mean) <= limits).all() else 0
        if inside >= RECOVERED:
            return Detector(mean=tuple(mean.tolist()), windows=self.windows + 1, inside=inside)
        after = Detector(tuple(wealth.tolist()), tuple(mean.tolist()), self.windows + 1, inside)
        return replace(after, drifting=self.drifting or after.log_evidence >= bound)

    @property
    def log_evidence(self) -> float:
        """The log of the mean wealth."""
        return float(np.log(np.exp(self.log_wealth).mean()))

    @property
    def shares(self) -> Floats:
        """The recent share of each bucket."""
        return np.diff(np.array((0.0, *self.mean, 1.0)))


def log_bound(false_alarms_per_month: float, windows_per_month: float, histograms: int) -> float:
    """Return the log wealth at which each of some histograms alarms, so that all together do so rarely enough."""
    return math.log(max(histograms * windows_per_month / false_alarms_per_month, 2.0))


def cumulated(counts: Sequence[float]) -> Floats:
    """Return the shares of observations up to each edge between two buckets."""
    sums = np.cumsum(np.asarray(counts, float))
    shares: Floats = sums[:-1] / sums[-1]
    return shares


def bucket_shares(counts: Sequence[float]) -> Floats:
    """Return the share of each bucket."""
    shares: Floats = np.asarray(counts, float) / sum(counts)
    return shares


def psi(reference: Floats, current: Floats) -> float:
    """Return the population stability index of two distributions over the same buckets."""
    p, q = _positive(reference), _positive(current)
    return float(((q - p) * np.log(q / p)).sum())


def kl_divergence(reference: Floats, current: Floats) -> float:
    """Return the divergence of Kullback and Leibler of the current distribution from the reference, in nats."""
    p, q = _positive(reference), _positive(current)
    return float((q * np.log(q / p)).sum())


def _positive(shares: Floats) -> Floats:
    raised = np.maximum(shares, SMALLEST_SHARE)
    positive: Floats = raised / raised.sum()
    return positive


def _sides(shares: Floats) -> Floats:
    """Return the shares [side, edge] up to each edge, and above it."""
    return np.array((shares, 1.0 - shares))


def _limits(reference: ReferenceRange, tolerance: float) -> Floats:
    """Return the largest expected share [side, edge] that the null hypothesis allows."""
    limits: Floats = np.array((reference.high, 1.0 - np.array(reference.low))) + tolerance
    return np.clip(limits, SMALLEST_SHARE, 1.0)


def _payoffs(detector: Detector, limits: Floats, shares: Floats) -> Floats:
    """Return the log factor of each stake's bet on this window, whose side and edge only the windows before choose."""
    if not detector.windows:
        return np.zeros(len(STAKES))
    ratios = _sides(np.array(detector.mean)) / limits
    place = np.unravel_index(int(ratios.argmax()), ratios.shape)
    if ratios[place] <= 1.0:
        return np.zeros(len(STAKES))
    factors: Floats = np.log1p(np.array(STAKES) * (_sides(shares)[place] / limits[place] - 1.0))
    return factors
