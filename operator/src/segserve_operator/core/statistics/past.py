"""How stable's failures and slowness clustered in its own past: the dependence that bets on a candidate allow for.

If any two requests within h seconds have a correlation r, the count of n of them varies 1 + (n - 1) r times as much as
the count of independent ones. The product of h and r, here in seconds, is nearly the same at every h beyond a cluster's
length, and at every rate of requests: it gives how many requests of a candidate count as one, whatever its weight is.
It is measured over windows of 15, 60 and 240 s, which contain clusters of all shorter lengths, and bets use the largest
of the upper confidence bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segserve_operator.core.evidence import EDGES_MS, STABLE, Bools, EvidenceWindow, Floats
from segserve_operator.core.statistics.blocks import tails

SCALES_S: Final = (15.0, 60.0, 240.0)
"""Lengths of windows; the shortest is the interval at which counters are read outside of rollouts."""
HALF_LIFE_S: Final = 3600.0
FEWEST_S: Final = 480.0
"""Shortest past that is enough, together with..."""
FEWEST_REQUESTS: Final = 100.0
LONG_S: Final = 1500.0
"""Past from which on nothing is assumed beside it: what is rare and large is seldom in a shorter one."""
DEVIATIONS: Final = 1.64
"""Standard deviations of the estimate in its upper bound: 95 %."""


@dataclass(frozen=True, slots=True)
class Past:
    """Sums over the windows of one quantity. Leading axes [...], H scales, B bins; at most 10 kB for 122 bins.

    open_s [..., H], open [..., H, B]: length and counts of the windows that are open.
    windows, seconds [..., H]: number and length of those that are closed; older ones fade.
    above, cross, squares [..., H, B]: sums of x, x n and x squared, where x of a window's n requests are in the bin or
    above.
    """

    open_s: Floats
    open: Floats
    windows: Floats
    seconds: Floats
    above: Floats
    cross: Floats
    squares: Floats

    @classmethod
    def none(cls, bins: int, shape: tuple[int, ...] = ()) -> Past:
        """Return a past of nothing."""
        scales = (*shape, len(SCALES_S))
        zeros, each = np.zeros(scales), np.zeros((*scales, bins))
        return cls(zeros, each, zeros, zeros, each, each, each)

    def added(self, bins: Floats, seconds: Floats) -> Past:
        """Return the past with stable's counts [..., B] of the next seconds [...]; empty looks do not count."""
        here = (bins.any(-1) & (seconds > 0))[..., None]
        open_s = self.open_s + np.where(here, np.asarray(seconds)[..., None], 0.0)
        opened = self.open + np.where(here, bins, 0.0)[..., None, :]
        closes: Bools = open_s >= 0.9 * np.array(SCALES_S)
        if not closes.any():
            return replace(self, open_s=open_s, open=opened)
        x = tails(opened)[..., :-1]
        fades = np.where(closes, np.exp2(-open_s / HALF_LIFE_S), 1.0)

        def summed(sums: Floats, new: Floats) -> Floats:
            at = closes.reshape(closes.shape + (1,) * (sums.ndim - closes.ndim))
            after: Floats = fades.reshape(at.shape) * sums + np.where(at, new, 0.0)
            return after

        return Past(
            open_s=np.where(closes, 0.0, open_s),
            open=np.where(closes[..., None], 0.0, opened),
            windows=summed(self.windows, np.ones_like(open_s)),
            seconds=summed(self.seconds, open_s),
            above=summed(self.above, x),
            cross=summed(self.cross, x * x[..., :1]),
            squares=summed(self.squares, x * x),
        )

    @property
    def enough(self) -> Bools:
        """Whether it is long enough to measure dependence [...]."""
        requests = self.above[..., 0, 0]
        long_enough: Bools = (self.seconds[..., 1] >= FEWEST_S) & (requests >= FEWEST_REQUESTS)
        return long_enough

    @property
    def lacking(self) -> Floats:
        """The part [...] of a long past that is lacking, 1 to 0."""
        lacks: Floats = np.maximum(1.0 - self.seconds[..., 1] / LONG_S, 0.0)
        return lacks

    @property
    def counts(self) -> Floats:
        """The counts [..., B] of the past."""
        above = self.above[..., 0, :]
        counts: Floats = above - np.concatenate([above[..., 1:], np.zeros((*above.shape[:-1], 1))], -1)
        return counts

    def clustered_s(self, at: NDArray[np.intp]) -> Floats:
        """Return the upper bound of h r (seconds) [..., S] of being in the bins `at` [..., S] or above; see above."""
        where = at[..., None, :]
        above, cross, squares = (
            np.take_along_axis(_padded(sums), where, -1) for sums in (self.above, self.cross, self.squares)
        )
        requests, windows = np.maximum(self.above[..., :1], 1.0), np.maximum(self.windows[..., None], 2.0)
        share = (above + 0.5) / (requests + 1.0)
        expected = np.maximum(share * (1.0 - share) * requests, 1e-9)
        deviations = squares - 2.0 * share * cross + share**2 * self.squares[..., :1]
        times = np.maximum(deviations / expected * windows / (windows - 1.0), 1.0)
        # The variance of an estimated variance: as for a normal quantity, and more where few are above the edge.
        noise = np.sqrt((2.0 + windows / expected) / windows)
        seconds = np.maximum(self.seconds[..., None], 1e-9)
        clustered_s = (times * (1.0 + DEVIATIONS * noise) - 1.0) * seconds / requests
        bound = np.where(self.windows[..., None] >= 2.0, np.minimum(clustered_s, seconds / windows), 0.0).max(-2)
        largest: Floats = bound
        return largest


def _padded(sums: Floats) -> Floats:
    return np.concatenate([sums, np.zeros((*sums.shape[:-1], 1))], -1)


@dataclass(frozen=True, slots=True)
class StablePast:
    """Stable's past: of failed requests (bins: answered, failed), and of latencies."""

    errors: Past
    latencies: Past

    @classmethod
    def none(cls, edges: int = len(EDGES_MS), shape: tuple[int, ...] = ()) -> StablePast:
        """Return a past of nothing."""
        return cls(Past.none(2, shape), Past.none(edges + 1, shape))

    def added(self, window: EvidenceWindow) -> StablePast:
        """Return the past with stable's requests of a window."""
        requests, errors = window.requests[..., STABLE], window.errors[..., STABLE]
        return StablePast(
            self.errors.added(np.stack([requests - errors, errors], -1), window.seconds),
            self.latencies.added(window.latencies[..., STABLE, :], window.seconds),
        )
