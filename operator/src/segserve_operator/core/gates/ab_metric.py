"""The result of an A/B test by a metric that others measure: the difference of its values between two revisions.

Both values of a query are asked for at the same moment, and their difference lies between declared bounds. The interval
holds the mean of these differences at all moments together with the declared confidence, if given all before each has
the same mean (`core.statistics.bounded_mean`). It knows nothing of the requests behind a value: two queries that look
back on the same time count it twice. Values outside the bounds count as the nearest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.api.ab_test import AbTestQuery
from segserve_operator.core.evidence import CANDIDATE, STABLE, EvidenceWindow, Floats, Judgement, MetricValues
from segserve_operator.core.gates.ab_test import DIFFERENCES, difference, mean_difference, no_result, result
from segserve_operator.core.gates.base import MeasuredGate, Verdict
from segserve_operator.core.statistics.bounded_mean import shared_out
from segserve_operator.core.statistics.past import StablePast

EARLY: Final = 0.9
"""Part of the interval after which a value counts."""


@dataclass(frozen=True, slots=True)
class AbMetricState:
    """counts [..., V]: pairs of values by difference, as parts of the range, as `DIFFERENCES`.

    total [..., 2]: the sums of values within the bounds, by revision. outside [...]: values beyond them. at_s [...]:
    when the latest values were asked for.
    """

    counts: Floats
    total: Floats
    outside: Floats
    at_s: Floats


@dataclass(frozen=True, slots=True)
class AbMetricResult(MeasuredGate[AbMetricState]):
    """Compares the values of a query between `minimum` and `maximum`, at `confidence` (0 to 1).

    A value sooner than `interval_s` after the last one looks back on time that was counted, and does not count.
    """

    minimum: float
    maximum: float
    higher_is_better: bool = False
    confidence: float = 0.95
    interval_s: float = 0.0

    @classmethod
    def of(cls, query: AbTestQuery) -> AbMetricResult:
        """Return the result of a test by this query."""
        higher = query.better == "higher"
        return cls(query.minimum, query.maximum, higher, interval_s=query.interval.total_seconds())

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> AbMetricState:
        """Return the state before any window; `past` changes nothing: the other revision had no part in it."""
        none = np.zeros(shape)
        never = MetricValues.nothing(shape).at_s
        return AbMetricState(np.zeros((*shape, len(DIFFERENCES))), np.zeros((*shape, 2)), none, never)

    def update(self, state: AbMetricState, window: EvidenceWindow) -> AbMetricState:
        """Return the state after one more window; values that it had before count once."""
        if window.metric is None:
            return state
        values = np.clip(window.metric.values, self.minimum, self.maximum)
        # A check asks at once after a restart or a quarantine, and a little early or late otherwise.
        due_s = state.at_s + EARLY * self.interval_s
        new = (window.metric.at_s > state.at_s) & (window.metric.at_s >= due_s)
        parts = (values[..., CANDIDATE] - values[..., STABLE]) / (self.maximum - self.minimum)
        return AbMetricState(
            state.counts + shared_out(parts, DIFFERENCES) * new[..., None],
            state.total + values * new[..., None],
            state.outside + (values != window.metric.values).sum(-1) * new,
            np.where(new, window.metric.at_s, state.at_s),
        )

    def judge(self, state: AbMetricState) -> Judgement:
        """Return that there is nothing against the candidate: the guard gates judge it."""
        return Judgement.of_evidence(np.full(state.outside.shape, -np.inf))

    def difference(self, state: AbMetricState) -> tuple[Floats, Floats]:
        """Return the interval (low, high) [...] of the candidate's metric less stable's."""
        low, high = difference(state.counts, self.confidence)
        span = self.maximum - self.minimum
        return low * span, high * span

    def explain(self, state: AbMetricState, level: float) -> Verdict:
        """Return the result so far; `level` is a gate's and does not matter."""
        numbers = {"values": float(state.counts.sum()), "outside": float(state.outside)}
        if not numbers["values"]:
            return no_result("the query has had no values of both revisions yet", numbers)
        low, high = (float(bound) for bound in self.difference(state))
        stable, candidate = (float(total) for total in state.total / numbers["values"])
        mean = mean_difference(state.counts) * (self.maximum - self.minimum)
        numbers |= {"stable": stable, "candidate": candidate, "difference": mean, "low": low, "high": high}
        message = (
            f"its metric is {candidate:.4g} on average, stable's {stable:.4g}, in {numbers['values']:,.0f} queries: "
            f"{mean:+.3g}, {100 * self.confidence:g} % interval {low:+.3g} to {high:+.3g}"
        )
        if numbers["outside"]:
            bounds = f"{self.minimum:g} to {self.maximum:g}"
            message = (
                f"{message}; {numbers['outside']:,.0f} values were outside {bounds}, and count as the nearest bound"
            )
        return result(message, numbers, higher_is_better=self.higher_is_better)
