"""What the peers see: scrapes every 15 s along a schedule of weights that nothing stops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.rollout.world import CANDIDATE, EDGES_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.rollout.world import Floats, World

SCRAPE_S: Final = 15.0
A_MINUTE: Final = 4
MINUTES: Final = 10
WEIGHTS: Final = tuple(0.05 * (minute + 1) for minute in range(MINUTES))
"""Flagger's own example: 5 % more each minute, up to 50 %."""


@dataclass(frozen=True, slots=True)
class Series:
    """Counts by scrape: requests and errors [runs, scrapes, 2], latencies [runs, scrapes, 2, edges + 1].

    `measured` [runs, scrapes] tells where there was a scrape; what was not scraped counts nothing.
    """

    requests: Floats
    errors: Floats
    latencies: Floats
    measured: NDArray[np.bool_]

    def windows(self, scrapes: int) -> Series:
        """Return the sums of so many scrapes each, one after the other."""
        return replace(
            self,
            requests=_summed(self.requests, scrapes),
            errors=_summed(self.errors, scrapes),
            latencies=_summed(self.latencies, scrapes),
            measured=_summed(self.measured, scrapes) > 0,
        )

    def running(self) -> Series:
        """Return the sums from the start to each scrape."""
        return replace(
            self,
            requests=self.requests.cumsum(1),
            errors=self.errors.cumsum(1),
            latencies=self.latencies.cumsum(1),
            measured=np.logical_or.accumulate(self.measured, 1),
        )

    def error_share(self, role: int = CANDIDATE) -> Floats:
        """Return failed by all requests, NaN where there were none."""
        return share(self.errors[..., role], self.requests[..., role])

    def p95_ms(self, role: int = CANDIDATE) -> Floats:
        """Return Prometheus' histogram_quantile(0.95), NaN where there were no requests."""
        return quantile_ms(self.latencies[..., role, :], 0.95)

    def slower(self, limit_ms: float) -> Floats:
        """Return the requests slower than an edge of the ladder, both roles."""
        found: Floats = self.latencies[..., EDGES_MS.index(limit_ms) + 1 :].sum(-1)
        return found


def share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where the whole is zero."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def quantile_ms(bins: Floats, q: float) -> Floats:
    """Return a quantile of binned latencies as Prometheus does: linear within a bin, at most the last edge."""
    below = bins.cumsum(-1)
    total = below[..., -1]
    rank = q * total
    found_at = (below < rank[..., None]).sum(-1)
    at = np.minimum(found_at, len(EDGES_MS) - 1)
    edges = np.array([0.0, *EDGES_MS])
    here = np.take_along_axis(bins, at[..., None], -1)[..., 0]
    before = np.take_along_axis(below, at[..., None], -1)[..., 0] - here
    within = edges[at] + np.clip(share(rank - before, here), 0.0, 1.0) * (edges[at + 1] - edges[at])
    known = np.where(found_at < len(EDGES_MS), within, EDGES_MS[-1])
    found: Floats = np.where(total > 0, known, np.nan)
    return found


def scheduled(scrape: int) -> float:
    """Return the candidate's share of requests during a scrape of the schedule."""
    return WEIGHTS[min(scrape // A_MINUTE, MINUTES - 1)]


def scraped(
    world: World,
    weight: Callable[[int], float | Floats] = scheduled,
    begin_s: float = 0.0,
    scrapes: int = MINUTES * A_MINUTE,
) -> Series:
    """Return what is scraped of all runs of a world from `begin_s` on; `weight` gives the shares during a scrape."""
    runs = len(world.rate(begin_s))
    counted = [
        world.count(begin_s + scrape * SCRAPE_S, SCRAPE_S, np.broadcast_to(weight(scrape), runs))
        for scrape in range(scrapes)
    ]
    measured = np.stack([each.measured for each in counted], 1)
    seen = measured[..., None]
    return Series(
        np.stack([each.requests for each in counted], 1) * seen,
        np.stack([each.errors for each in counted], 1) * seen,
        np.stack([each.latencies for each in counted], 1) * seen[..., None],
        measured,
    )


def _summed(values: NDArray[np.float64] | NDArray[np.bool_], count: int) -> Floats:
    runs, scrapes, *rest = values.shape
    whole = scrapes // count
    found: Floats = values[:, : whole * count].reshape(runs, whole, count, *rest).sum(2)
    return found
