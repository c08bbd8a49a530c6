"""Reads the results: cells by what they are, the best peer of each, and what was lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench.rollout.cells import RATES, SLO_MS, SLOW_HORIZON_S, TIGHT_SLO_MS, Cell
from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.ours import ALPHA
from bench.rollout.peers import PEERS
from bench.rollout.world import excess_share

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Row = Mapping[str, Any]

WITHIN: Final = 1.5 * ALPHA
"""A tuned peer is compared where it rolls back at most so many healthy rollouts: 1 % and some noise."""

LARGE: Final = 0.048
"""Regressions of five points and more (a failed one may have been slow anyway): less harm than the best peer is the
goal; of others 1.3x."""

SMALL_FACTOR: Final = 1.3
TOLERATED: Final = frozenset({"errors+0.2", "errors+0.5", "latency-x1.1"})
"""What our default tolerance calls no worse."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Our figures of a cell beside those of the best tuned peer; `best` is empty where none keeps to 1 %."""

    row: Row
    pace: str
    best: str
    factor: float
    allowed: float

    @property
    def lost(self) -> bool:
        """Whether the goal is missed by more than the intervals of both explain."""
        if not self.best:
            return False
        ours, peer = self.row["ours"][self.pace]["excess"], self.row["peers"]["tuned"][self.best]["excess"]
        return bool(ours[1] > self.allowed * peer[2])


@dataclass(frozen=True, slots=True)
class Results:
    """All cells' figures, by rate, condition, fault and SLO."""

    cells: Mapping[tuple[float, str, str, float], Row]

    @classmethod
    def of(cls, found: Row) -> Results:
        """Take what a run has collected."""
        return cls({(row["rate"], row["condition"], row["fault"], row["slo_ms"]): row for row in found["cells"]})

    def healthy(self) -> Iterator[Row]:
        """Yield the cells without a fault, in their order."""
        for slo_ms in (SLO_MS, TIGHT_SLO_MS):
            for condition in CONDITIONS:
                for rate in RATES:
                    if row := self.cells.get((rate, condition, NONE, slo_ms)):
                        yield row

    def faulty(self, *, steady: bool) -> Iterator[Row]:
        """Yield the cells with a fault: with reasonable slack in steady traffic, or all others."""
        for slo_ms in (SLO_MS, TIGHT_SLO_MS):
            for condition in CONDITIONS:
                if steady != (condition == STEADY and slo_ms == SLO_MS):
                    continue
                for fault in FAULTS:
                    for rate in RATES:
                        row = self.cells.get((rate, condition, fault, slo_ms))
                        if fault != NONE and row:
                            yield row

    def false_share(self, row: Row, peer: str) -> float:
        """Return how often a tuned peer rolls back healthy rollouts in this cell's traffic; 1 where it was not run."""
        null = self.cells.get((row["rate"], row["condition"], NONE, row["slo_ms"]))
        return float(null["peers"]["tuned"][peer]["rolled_back"][0]) if null else 1.0

    def compared(self, row: Row, pace: str = "evidence") -> Compared:
        """Return our figures beside those of the peer that does least harm with at most 1 % false rollbacks."""
        tuned = row["peers"]["tuned"]
        fair = [peer for peer in PEERS if self.false_share(row, peer) <= WITHIN]
        best = min(fair, key=lambda peer: tuned[peer]["excess"][0], default="")
        ours = row["ours"][pace]["excess"][0]
        peer_excess = tuned[best]["excess"][0] if best else 0.0
        factor = ours / peer_excess if peer_excess > 0 else (0.0 if ours <= 0 else float("inf"))
        return Compared(row, pace, best, factor, 1.0 if _worst(row) >= LARGE else SMALL_FACTOR)


def _worst(row: Row) -> float:
    """Return the largest share of requests that the fault spoils."""
    setting = Cell(row["rate"], row["condition"], row["fault"], row["slo_ms"]).setting
    return max(excess_share(setting, now_s) for now_s in (0.0, setting.fault.onset_s, SLOW_HORIZON_S))
