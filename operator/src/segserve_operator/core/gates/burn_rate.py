"""The gate `burnRate`: how fast a promoted revision uses up the SLO's error budget.

A rule, not a test: after promotion there is nothing to compare with, so it has no false-alarm rate and no share of
alpha. As in the SRE workbook (chapter 5), it breaches if a long and a short window both burn the budget faster than
`factor` times the rate allowed: the long one ignores blips, the short one shows that the burn continues. Time before
the promotion counts as good, so that a short incident soon after it is not taken for a long one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import BurnRateGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE, Bools, EvidenceWindow, Floats, Judgement
from segserve_operator.core.gates.base import Edges, MeasuredGate, MeasuredGateType, Outcome, Verdict
from segserve_operator.core.statistics.past import StablePast

BUCKETS: Final = 48
SHORT: Final = BUCKETS // 12
"""The short window is a twelfth of the long one."""
HELD_BACK: Final = 0.25
"""Upper bound of the former revision's requests during the bake, as a part of the promoted one's."""
MIN_BAD_REQUESTS: Final = 10.0
"""Bad requests that a breach needs at least, so that one failure in a quiet night is not enough."""


@dataclass(frozen=True, slots=True)
class BurnState:
    """requests, bad [..., streams, BUCKETS]: counts by age, newest first; the newest bucket is age_s [...] old.

    served_s [...]: seconds since the promotion.
    """

    served_s: Floats
    age_s: Floats
    requests: Floats
    bad: Floats


@dataclass(frozen=True, slots=True)
class BurnRate(MeasuredGate[BurnState]):
    """Breaches if errors, or requests slower than the SLO's p95 or p99, use up their budget too fast.

    `slo_rate` is the share (0 to 1) of requests that may fail; `slo_ms` has (quantile, milliseconds), 1 - quantile of
    the requests may be slower. `long_s` is the long window.
    """

    slo_rate: float
    factor: float = 14.4
    long_s: float = 600.0
    slo_ms: tuple[tuple[float, float], ...] = ()
    edges: tuple[float, ...] = EDGES_MS

    @property
    def budgets(self) -> Floats:
        """The shares of bad requests [streams] that the SLO allows."""
        return np.array([self.slo_rate, *(1.0 - quantile for quantile, _ in self.slo_ms)])

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> BurnState:
        """Return the state before any window; `past` changes nothing, since there is nothing to compare with."""
        buckets = np.zeros((*shape, len(self.budgets), BUCKETS))
        return BurnState(np.zeros(shape), np.zeros(shape), buckets, buckets)

    def update(self, state: BurnState, window: EvidenceWindow) -> BurnState:
        """Return the state after one more window; counts only what serves nearly all requests, i.e. after promotion."""
        if window.pairs is not None:
            return state  # no caller's
        held_back = HELD_BACK * window.requests[..., CANDIDATE]
        alone = (window.requests[..., STABLE] <= held_back) & (window.requests[..., CANDIDATE] > 0)
        begun = state.served_s > 0
        # A window without requests does not mean a change of roles, yet its time passes.
        served = alone | (begun & (window.requests[..., CANDIDATE] <= 0) & (window.requests[..., STABLE] <= 0))
        passed_s = np.where(served, window.seconds, 0.0)
        age_s = state.age_s + passed_s
        steps = np.floor(age_s / (self.long_s / BUCKETS))
        requests, bad = self._aged(state.requests, steps), self._aged(state.bad, steps)
        requests[..., 0] += np.where(alone, window.requests[..., CANDIDATE], 0.0)[..., None]
        bad[..., 0] += np.where(alone[..., None], self._bad(window), 0.0)
        return BurnState(state.served_s + passed_s, age_s - steps * (self.long_s / BUCKETS), requests, bad)

    def judge(self, state: BurnState) -> Judgement:
        """Return +inf as evidence if the budget burns, else -inf; harm and excess are 0: other gates watch them."""
        return Judgement.of_evidence(np.where(self._burns(state), np.inf, -np.inf))

    def explain(self, state: BurnState, level: float) -> Verdict:
        """Return the verdict on one rollout; a rule ignores `level`."""
        long, short = (self._rate(state, width) for width in (BUCKETS, SHORT))
        worst = int(np.argmax(np.minimum(long, short)))
        what = ["failed requests", *(f"requests above the SLO's p{100 * each:g}" for each, _ in self.slo_ms)][worst]
        numbers = {
            "long": float(long[worst]),
            "short": float(short[worst]),
            "factor": self.factor,
            "requests": float(state.requests[0].sum()),
            "bad": float(state.bad[worst].sum()),
        }
        if not numbers["requests"]:
            return Verdict("burnRate", Outcome.UNDECIDED, "NotPromoted", "not promoted yet", 0.0, numbers)
        message = (
            f"{what}: the budget burns {long[worst]:.3g} times as fast as the SLO allows over {self.long_s:g} s and "
            f"{short[worst]:.3g} times over {self.long_s / 12:g} s; {self.factor:g} is the limit"
        )
        burns = bool(self._burns(state))
        progress = 1.0 if burns else float(min(long[worst], short[worst], self.factor) / self.factor)
        outcome, reason = (Outcome.BREACH, "BudgetBurns") if burns else (Outcome.PASS, "WithinBudget")
        return Verdict("burnRate", outcome, reason, message, progress, numbers)

    def _burns(self, state: BurnState) -> Bools:
        fast = (self._rate(state, BUCKETS) > self.factor) & (self._rate(state, SHORT) > self.factor)
        burns: Bools = (fast & (state.bad.sum(-1) >= MIN_BAD_REQUESTS)).any(-1)
        return burns

    def _rate(self, state: BurnState, width: int) -> Floats:
        """Return the burn rate of each budget [..., streams] in the newest buckets, as a multiple of the SLO's."""
        requests, bad = state.requests[..., :width].sum(-1), state.bad[..., :width].sum(-1)
        window_s = self.long_s * width / BUCKETS
        unseen = np.maximum(window_s / np.maximum(state.served_s, 1e-9), 1.0)[..., None]
        rate: Floats = bad / np.maximum(requests * unseen, 1.0) / self.budgets
        return rate

    def _bad(self, window: EvidenceWindow) -> Floats:
        """Return the candidate's bad requests [..., streams]."""
        slow = [
            window.latencies[..., CANDIDATE, 1 + int(np.searchsorted(self.edges, limit * (1 - 1e-9))) :].sum(-1)
            for _, limit in self.slo_ms
        ]
        return np.stack([window.errors[..., CANDIDATE], *slow], -1)

    def _aged(self, buckets: Floats, steps: Floats) -> Floats:
        """Return a copy of the buckets, shifted to greater age by `steps` [...]; the oldest fall out."""
        if not steps.any():
            return buckets.copy()
        if (steps == steps.flat[0]).all():
            aged, by = np.zeros_like(buckets), int(min(steps.flat[0], BUCKETS))
            aged[..., by:] = buckets[..., : BUCKETS - by]
            return aged
        before = np.arange(BUCKETS) - np.minimum(steps, BUCKETS).astype(np.intp)[..., None]
        counts = np.take_along_axis(buckets, np.broadcast_to(np.maximum(before, 0)[..., None, :], buckets.shape), -1)
        return np.where(before[..., None, :] >= 0, counts, 0.0)


def _build(spec: BurnRateGate, slo: Slo, _policy: RolloutPolicy, edges: Edges) -> BurnRate:
    strict = tuple((quantile, limit_ms) for quantile, limit_ms in slo.latencies if quantile > 0.5)
    return BurnRate(slo.error_percent / 100, spec.factor, spec.long_window.total_seconds(), strict, edges)


GATE: Final = MeasuredGateType(BurnRateGate, _build, lambda _: 1.0, is_rule=True)
