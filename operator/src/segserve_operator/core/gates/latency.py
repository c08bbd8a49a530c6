"""The gate `latency`: the candidate's share of slow requests against stable's at the same time and the SLO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import LatencyGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, RATIOS, STABLE, EvidenceWindow, Floats
from segserve_operator.core.gates.base import (
    Edges,
    ExceedanceGate,
    MeasuredGateType,
    Verdict,
    comparison,
    comparison_of_pairs,
    outcome_of,
)
from segserve_operator.core.statistics.blocks import tails
from segserve_operator.core.statistics.discordant import Discordant, discordant
from segserve_operator.core.statistics.exceedance import EvidenceStream, Exceedance, ExceedanceState, pairs_of
from segserve_operator.core.statistics.past import StablePast

RELATIVE: Final = 0.75
"""Part of the evidence for the comparison with stable if the SLO also names latencies; the rest is for those."""
WARM_UP_S: Final = 20.0
"""Time in which caches and connections of a new server are cold; its first answers prove nothing."""
SETTLING_S: Final = 120.0
"""Time in which a candidate may be cold, if stable's past is known: slowness then stops it but proves nothing."""
SHADOW_SETTLING_S: Final = 180.0
"""The same in Shadow, where waiting harms no caller."""
ODDS: Final = (1.1, 1.4, 2.5)
"""Additional alternatives to bet on: ratio of the odds of being slow to the odds allowed."""
SWINGS: Final = {0.5: 0.04, 0.95: 0.06, 0.99: 0.1}
"""Relative difference of the share of slow requests between two healthy servers, by quantile: the tail swings more than
the median."""
FIRST_RATIO: Final = 0.4
"""Part of the evidence of pairs for the first ratio; the others share the rest."""
TAIL_RATIOS: Final = (1.5, 2.0, 4.0)
"""Ratios of a pair's latencies that are compared beside the first one: a few requests that take much longer."""
P99_PART: Final = 0.2
"""Part of the tolerance that applies at p99: the tolerance is meant for p95, the slowest twentieth."""


@dataclass(frozen=True, slots=True)
class Latency(ExceedanceGate):
    """Breaches if more of the candidate's requests are slow than of stable's, or than both the SLO and stable allow.

    A request is slow above `stretch` times stable's own median, p95 or p99 of the past minutes, or above the SLO's
    milliseconds by quantile, rounded up to the next edge. `tolerance` is the share of requests that may be slow in
    addition to stable's.

    Of pairs, the ones in which the candidate took a ratio longer are compared with the ones in which stable did: equal
    revisions are as often the slower one, whatever the load. As all requests may take `stretch` times longer, a ratio
    is opposed to one as far below `stretch` as it is above.
    """

    tolerance: float
    stretch: float = 1.1
    slo_ms: tuple[tuple[float, float], ...] = ()
    edges: tuple[float, ...] = EDGES_MS
    test: Exceedance = field(init=False, repr=False, compare=False)
    """The test over latency bins; streams relative to stable come first."""

    def __post_init__(self) -> None:
        relative = RELATIVE if self.slo_ms else 1.0
        tolerances = {0.5: self.tolerance, 0.95: self.tolerance, 0.99: P99_PART * self.tolerance}
        streams = [
            EvidenceStream(
                relative / len(tolerances),
                tolerance=tolerance,
                quantile=quantile,
                stretch=self.stretch,
                swing=SWINGS[quantile],
            )
            for quantile, tolerance in tolerances.items()
        ]
        part = (1.0 - relative) / max(len(self.slo_ms), 1)
        for quantile, milliseconds in self.slo_ms:
            at = int(np.searchsorted(self.edges, milliseconds * (1 - 1e-9))) + 1
            streams.append(
                EvidenceStream(part, floor=1.0 - quantile, at=min(at, len(self.edges)), swing=SWINGS[quantile])
            )
        promised = [quantile for quantile, _ in self.slo_ms]
        # The objective best suited to recognise bad requests: p95, else p99, else p50.
        best = max(promised, key=lambda quantile: {0.95: 2, 0.99: 1}.get(quantile, 0), default=0.0)
        counted = 3 + promised.index(best) if promised else 1
        ratios = len(self.ratios)
        weights = (FIRST_RATIO, *((1.0 - FIRST_RATIO) / (ratios - 1) for _ in range(ratios - 1)))
        test = Exceedance(
            self.edges,
            tuple(streams),
            counted=counted,
            warm_up_s=WARM_UP_S,
            settling_s=SETTLING_S,
            shadow_settling_s=SHADOW_SETTLING_S,
            odds=ODDS,
            pairs=Discordant((self.tolerance,) * ratios, weights, certificates=2),
        )
        object.__setattr__(self, "test", test)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratios of a pair's latencies that are compared: the first that is not tolerated, and larger ones.

        Beyond all of `RATIOS` pairs prove nothing, and the ratio is infinite.
        """
        first = next((ratio for ratio in RATIOS if ratio > 1 and ratio >= self.stretch * (1 - 1e-9)), np.inf)
        return (first, *(ratio for ratio in TAIL_RATIOS if ratio > first))

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> ExceedanceState:
        """Return the state before any window; `past` is stable's, of latencies with this gate's edges."""
        return self.test.start(shape, past.latencies if past is not None else None)

    def informed(self, state: ExceedanceState, past: StablePast) -> ExceedanceState:
        """Return the state with what stable's past shows by now, of latencies with this gate's edges."""
        return self.test.informed(state, past.latencies)

    def update(self, state: ExceedanceState, window: EvidenceWindow) -> ExceedanceState:
        """Return the state after one more window; its latencies must have this gate's edges."""
        if window.pairs is None:
            return self.test.update(state, window.latencies, window.seconds)
        counts = self._discordant(state, window.latencies, window.pairs.ratios)
        return self.test.update_pairs(state, window.latencies, window.seconds, counts)

    def _discordant(self, state: ExceedanceState, latencies: Floats, ratios: Floats) -> Floats:
        """Return the counts of pairs [..., Q, 3]: by ratio, if slower than stable and than tolerated, and of harm.

        Harm is certified of both: of requests that are slow, and of all that take longer than is tolerated.
        """
        test = self.test
        slower, pairs = tails(ratios), ratios.sum(-1)
        first, *others = self.ratios
        # What is tolerated of all requests is not a difference in either null; of a few in the tail it is one.
        strict = self._opposed(slower, pairs, first, self.stretch)
        worse = [strict, *(self._opposed(slower, pairs, ratio, 1.0) for ratio in others)]
        tolerated = [strict, *(self._opposed(slower, pairs, ratio, self.stretch) for ratio in others)]
        at, known = test.edges_now(state)
        slow = np.take_along_axis(tails(latencies), at[..., test.counted, None], -1)[..., 0]
        of_slow = np.where(known[..., test.counted, None], discordant(slow, latencies.sum(-1).max(-1)), 0.0)
        return np.stack([*worse, *tolerated, of_slow, strict], -2)

    def slower(self, ratios: Floats) -> Floats:
        """Return pairs [..., 3] of `ratios` [..., R + 1]: the candidate took too long, the opposite, neither."""
        return self._opposed(tails(ratios), ratios.sum(-1), self.ratios[0], self.stretch)

    def _opposed(self, slower: Floats, pairs: Floats, ratio: float, stretch: float) -> Floats:
        """Return the pairs [..., 3] in which the candidate took `ratio` times as long, and the pairs on the other side.

        `slower` [..., R + 2] counts pairs above each edge. The other side is as far below `stretch` as the ratio is
        above it, or nearer.
        """
        if not np.isfinite(ratio):
            return np.stack([np.zeros_like(pairs), np.zeros_like(pairs), pairs], -1)
        edges = np.array(RATIOS)
        above = slower[..., RATIOS.index(ratio) + 1]
        mirrored = min(int(np.searchsorted(edges, stretch**2 / ratio * (1 - 1e-9))), RATIOS.index(ratio))
        below = pairs - slower[..., mirrored + 1]
        return np.stack([above, below, pairs - above - below], -1)

    def explain(self, state: ExceedanceState, level: float) -> Verdict:
        """Return the verdict on one rollout, with p50 and p95 of both revisions."""
        judged = self.judge(state)
        outcome, reason, progress = outcome_of(judged, level)
        numbers = {
            f"{role}_p{round(100 * quantile)}_ms": self._quantile(state.total[index], quantile)
            for index, role in ((STABLE, "stable"), (CANDIDATE, "candidate"))
            for quantile in (0.5, 0.95, 0.99)
        }
        numbers |= {"stable_requests": float(state.total[STABLE].sum()), "harm": float(judged.harm)}
        numbers |= {"candidate_requests": float(state.total[CANDIDATE].sum()), "excess": float(judged.excess)}
        message = comparison(
            f"p50 {numbers['candidate_p50_ms']:.3g} ms and p95 {numbers['candidate_p95_ms']:.3g} ms",
            f"{numbers['stable_p50_ms']:.3g} and {numbers['stable_p95_ms']:.3g} ms",
            judged,
            level,
        )
        if state.shadowed > 0 and np.isfinite(self.ratios[0]):
            did = f"the candidate took {self.ratios[0]:g} times as long or longer", "less"
            message, asked = comparison_of_pairs(pairs_of(state), did, judged, level)
            numbers |= asked
        return Verdict("latency", outcome, reason, message, progress, numbers)

    def _quantile(self, bins: Floats, quantile: float) -> float:
        """Return the upper edge (ms) of the bin that holds the quantile; 0 without data, the last edge at most."""
        if bins.sum() <= 0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(bins), quantile * bins.sum()))
        return self.edges[min(index, len(self.edges) - 1)]


def _build(_: LatencyGate, slo: Slo, policy: RolloutPolicy, edges: Edges) -> Latency:
    tolerance = policy.tolerance
    return Latency(tolerance.slow_percent / 100, 1 + tolerance.latency_percent / 100, slo.latencies, edges)


GATE: Final = MeasuredGateType(LatencyGate, _build, lambda policy: policy.tolerance.slow_percent / 100)
