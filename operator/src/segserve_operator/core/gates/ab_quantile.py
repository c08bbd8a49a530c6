"""The result of an A/B test by a percentile of the latency: the difference of a quantile between two revisions.

Howard and Ramdas (2022), "Sequential estimation of quantiles with applications to A/B testing and best-arm
identification": a quantile is the latency below which a share q of requests stays, so that a test of that share refutes
it. Here, as in `ab_test`, a value is a block of time: the share of the block's answers below each edge of the latency
bins. Requests within a block may depend on each other, and no bound on the latency is assumed. The true quantile's bin
is refuted with at most the declared probability at any moment, so that the bins that are left are a confidence
sequence; by the union bound, those of both revisions together are one of the difference.

An interval ends at edges of bins: it is never narrower than a bin of each revision, about 10 % of the latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE, EvidenceWindow, Floats, Judgement
from segserve_operator.core.gates.ab_test import blocks, no_result, result
from segserve_operator.core.gates.base import MeasuredGate, Verdict
from segserve_operator.core.statistics.bounded_mean import quantile_bins, shared_out
from segserve_operator.core.statistics.past import StablePast

SHARES: Final = np.array((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0))
"""The shares of a block's answers that values are shared out to."""


@dataclass(frozen=True, slots=True)
class AbQuantileState:
    """counts [..., 2, K, V]: blocks by revision and edge, by the share of answers below it, as `SHARES`.

    answers [..., 2]: of whole blocks, by revision. seconds [...] and pending [..., 2, K + 1]: the present block, and
    its answers by latency.
    """

    counts: Floats
    answers: Floats
    seconds: Floats
    pending: Floats


@dataclass(frozen=True, slots=True)
class AbQuantileResult(MeasuredGate[AbQuantileState]):
    """Compares the latency that a share `quantile` of answers stays below, at `confidence` (both 0 to 1)."""

    quantile: float
    confidence: float = 0.95
    edges: tuple[float, ...] = EDGES_MS

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> AbQuantileState:
        """Return the state before any window; `past` changes nothing: the other revision had no part in it."""
        bins = len(self.edges)
        counts, pending = np.zeros((*shape, 2, bins, len(SHARES))), np.zeros((*shape, 2, bins + 1))
        return AbQuantileState(counts, np.zeros((*shape, 2)), np.zeros(shape), pending)

    def update(self, state: AbQuantileState, window: EvidenceWindow) -> AbQuantileState:
        """Return the state after one more window. Blocks in which a revision answered nothing are left out."""
        if window.pairs is not None:
            return state  # no caller's
        seconds, pending = state.seconds + window.seconds, state.pending + window.latencies
        answers = pending.sum(-1)
        ends, counted = blocks(seconds, answers)
        if not ends.any():
            return AbQuantileState(state.counts, state.answers, seconds, pending)
        below = pending.cumsum(-1)[..., :-1] / np.maximum(answers, 1.0)[..., None]
        return AbQuantileState(
            state.counts + shared_out(below, SHARES) * counted[..., None, None, None],
            state.answers + answers * counted[..., None],
            np.where(ends, 0.0, seconds),
            np.where(ends[..., None, None], 0.0, pending),
        )

    def judge(self, state: AbQuantileState) -> Judgement:
        """Return that there is nothing against the candidate: the guard gates judge it."""
        return Judgement.of_evidence(np.full(state.seconds.shape, -np.inf))

    def quantiles(self, state: AbQuantileState) -> tuple[Floats, Floats]:
        """Return the interval (low, high) [..., 2] in ms of each revision's quantile; infinity is beyond all edges."""
        # Both revisions share what may be missed.
        low, high = quantile_bins(state.counts, SHARES, self.quantile, (1.0 - self.confidence) / 2.0)
        lower, upper = np.array((0.0, *self.edges)), np.array((*self.edges, np.inf))
        return lower[low], upper[high]

    def difference(self, state: AbQuantileState) -> tuple[Floats, Floats]:
        """Return the interval (low, high) [...] in ms of the candidate's quantile less stable's."""
        low, high = self.quantiles(state)
        return low[..., CANDIDATE] - high[..., STABLE], high[..., CANDIDATE] - low[..., STABLE]

    def explain(self, state: AbQuantileState, level: float) -> Verdict:
        """Return the result so far; `level` is a gate's and does not matter."""
        numbers = {
            "blocks": float(state.counts[STABLE, 0].sum()),
            "stable_requests": float(state.answers[STABLE]),
            "candidate_requests": float(state.answers[CANDIDATE]),
        }
        if not numbers["blocks"]:
            return no_result("both revisions have not answered requests yet", numbers)
        shares = state.counts @ SHARES / numbers["blocks"]
        at = np.minimum((shares < self.quantile - 1e-9).sum(-1), len(self.edges) - 1)
        stable, candidate = (float(self.edges[index]) for index in at)
        low, high = (float(bound) for bound in self.difference(state))
        numbers |= {"stable_ms": stable, "candidate_ms": candidate, "low": low, "high": high}
        name = f"p{100 * self.quantile:g}"
        figures = f"its {name} is about {candidate:g} ms, stable's {stable:g} ms"
        if not np.isfinite([low, high]).any():
            return no_result(f"{figures}: too few blocks of time yet to bound the difference", numbers)
        message = (
            f"{figures}: {candidate - stable:+g} ms, {100 * self.confidence:g} % interval {low:+g} to {high:+g} ms"
        )
        return result(message, numbers)
