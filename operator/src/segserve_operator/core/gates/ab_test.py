"""The result of an A/B test by shares of requests: their difference between two revisions, with an interval.

It judges nothing, the guard gates beside it do. Requests of both revisions are counted in the same short blocks of
time, and the difference of their two shares is one value: what hits both at that moment cancels, and requests within a
block may depend on each other. The interval holds the mean of these differences at all moments together with the
declared confidence (`core.statistics.bounded_mean`), so that it may be looked at whenever one likes. Percentiles of the
latency are in `ab_quantile`, metrics that others measure in `ab_metric`.

What differs between the ids that fell to each revision, rather than between the revisions, is part of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE, Bools, EvidenceWindow, Floats, Judgement
from segserve_operator.core.gates.base import MeasuredGate, Outcome, Verdict
from segserve_operator.core.statistics.bounded_mean import interval, shared_out
from segserve_operator.core.statistics.past import StablePast

NAME: Final = "abTest"
BETTER, WORSE, OPEN = "TestedBetter", "TestedWorse", "TestedUndecided"
"""Reasons: the whole interval is on the side of the better values, on the other side, or holds zero."""
BLOCK_S: Final = 10.0
BLOCK_REQUESTS: Final = 10.0
"""Requests of each revision that a block has at least, unless it has lasted for `LONGEST_BLOCK_S`."""
LONGEST_BLOCK_S: Final = 120.0
_SMALL: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
DIFFERENCES: Final = np.array((*(-each for each in reversed(_SMALL)), 0.0, *_SMALL))
"""The differences, from -1 to 1, that values are shared out to."""
_VALUES: Final = (DIFFERENCES + 1.0) / 2.0


def difference(counts: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Return the interval (low, high) [...] of the mean of `counts` [..., V] of differences; -1 to 1 of none."""
    low, high = interval(counts, _VALUES, 1.0 - confidence)
    return 2.0 * low - 1.0, 2.0 * high - 1.0


def mean_difference(counts: Floats) -> float:
    """Return the mean of `counts` [V] of differences, not all zero."""
    return float(counts @ DIFFERENCES) / float(counts.sum())


def blocks(seconds: Floats, counted: Floats) -> tuple[Bools, Bools]:
    """Return which blocks end [...], so long and with so many requests [..., 2], and which of these are evidence."""
    full = (seconds >= BLOCK_S) & (counted >= BLOCK_REQUESTS).all(-1)
    ends = full | (seconds >= LONGEST_BLOCK_S)
    return ends, ends & (counted > 0).all(-1)


def result(message: str, numbers: Mapping[str, float], *, higher_is_better: bool = False) -> Verdict:
    """Return the verdict on a test whose interval is `low` to `high` of its numbers."""
    low, high = numbers["low"], numbers["high"]
    if higher_is_better:
        low, high = -high, -low
    reason = BETTER if high < 0 else WORSE if low > 0 else OPEN
    said = {BETTER: "better", WORSE: "worse", OPEN: "no difference is proved"}[reason]
    outcome = Outcome.PASS if reason == BETTER else Outcome.UNDECIDED
    return Verdict(NAME, outcome, reason, f"{message}: {said}", 0.0, numbers)


def no_result(message: str, numbers: Mapping[str, float]) -> Verdict:
    """Return the verdict on a test that has nothing to compare."""
    return Verdict(NAME, Outcome.UNDECIDED, OPEN, message, 0.0, numbers)


@dataclass(frozen=True, slots=True)
class AbTestState:
    """counts [..., V]: blocks by difference, as `DIFFERENCES`. requests, hits [..., 2]: of whole blocks, by revision.

    seconds [...] and pending, pending_hits [..., 2]: the present block.
    """

    counts: Floats
    requests: Floats
    hits: Floats
    seconds: Floats
    pending: Floats
    pending_hits: Floats


@dataclass(frozen=True, slots=True)
class AbTestResult(MeasuredGate[AbTestState]):
    """Compares the share of failed requests, or of those slower than `slow_ms`, at `confidence` (0 to 1)."""

    slow_ms: float | None = None
    confidence: float = 0.95
    edges: tuple[float, ...] = EDGES_MS

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> AbTestState:
        """Return the state before any window; `past` changes nothing: the other revision had no part in it."""
        both = np.zeros((*shape, 2))
        return AbTestState(np.zeros((*shape, len(DIFFERENCES))), both, both, np.zeros(shape), both, both)

    def update(self, state: AbTestState, window: EvidenceWindow) -> AbTestState:
        """Return the state after one more window. Blocks in which a revision had no requests are left out."""
        if window.pairs is not None:
            return state  # no caller's
        seconds = state.seconds + window.seconds
        pending = state.pending + window.requests
        hits = state.pending_hits + self._hits(window)
        ends, counted = blocks(seconds, pending)
        shares = hits / np.maximum(pending, 1.0)
        value = np.clip(shares[..., CANDIDATE] - shares[..., STABLE], -1.0, 1.0)
        more = shared_out(value, DIFFERENCES) * counted[..., None]
        return AbTestState(
            state.counts + more,
            state.requests + pending * counted[..., None],
            state.hits + hits * counted[..., None],
            np.where(ends, 0.0, seconds),
            np.where(ends[..., None], 0.0, pending),
            np.where(ends[..., None], 0.0, hits),
        )

    def judge(self, state: AbTestState) -> Judgement:
        """Return that there is nothing against the candidate: the guard gates judge it."""
        return Judgement.of_evidence(np.full(state.seconds.shape, -np.inf))

    def difference(self, state: AbTestState) -> tuple[Floats, Floats]:
        """Return the interval (low, high) [...] of the candidate's metric less stable's; -1 to 1 of no blocks."""
        return difference(state.counts, self.confidence)

    def explain(self, state: AbTestState, level: float) -> Verdict:
        """Return the result so far; `level` is a gate's and does not matter."""
        what = "failed" if self.slow_ms is None else f"took longer than {self.slow_ms:g} ms"
        numbers = {
            "blocks": float(state.counts.sum()),
            "stable_requests": float(state.requests[STABLE]),
            "candidate_requests": float(state.requests[CANDIDATE]),
        }
        if not numbers["blocks"]:
            return no_result("both revisions have not had requests yet", numbers)
        low, high = (float(bound) for bound in self.difference(state))
        stable, candidate = (float(share) for share in state.hits / np.maximum(state.requests, 1.0))
        mean = mean_difference(state.counts)
        numbers |= {"stable": stable, "candidate": candidate, "difference": mean, "low": low, "high": high}
        message = (
            f"{100 * candidate:.3g} % of its requests {what}, of stable's {100 * stable:.3g} %: "
            f"{100 * mean:+.3g} points, {100 * self.confidence:g} % interval {100 * low:+.3g} to {100 * high:+.3g}"
        )
        return result(message, numbers)

    def _hits(self, window: EvidenceWindow) -> Floats:
        if self.slow_ms is None:
            return window.errors
        slow: Floats = window.latencies[..., 1 + int(np.searchsorted(self.edges, self.slow_ms * (1 - 1e-9))) :].sum(-1)
        # Latencies come with the next window: a share is never above one.
        return slow
