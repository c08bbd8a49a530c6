"""Power of a rollout policy, estimated in advance: the real engine and gates on a few hundred simulated rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import CANDIDATE, EvidenceWindow, Floats
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.rollout.engine import Progress, Signals, next_transition, watch, weights
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import engine_policy

ERRORS: Final = (0.01, 0.02, 0.05, 0.2)
SLOWER: Final = (1.25, 1.5, 2.0, 3.0)
RUNS: Final = 40
INTERVAL_S: Final = 5.0
HISTORY_S: Final = 120.0
SURE: Final = 0.9
EDGES: Final = tuple(float(f"{each:.3g}") for each in np.geomspace(0.2, 12.0, 43))
"""Edges of latency bins in units of stable's median; 10 % apart."""
SIGMA: Final = 0.5
"""Width of the invented latencies (log-normal): p95 is 2.3 times the median."""
_ENDED: Final = (Phase.ROLLED_BACK, Phase.QUARANTINED)


@dataclass(frozen=True, slots=True)
class DetectedRegression:
    """A regression ("error rate", "5 points higher"; "latency", "1.5 times as high"), and the seconds after which nine
    of ten rollouts have stopped it; infinity if fewer do."""

    what: str
    size: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Preview:
    """Detection of each regression in so many minutes at a rate of requests."""

    requests_per_second: float
    minutes: float
    rows: tuple[DetectedRegression, ...]


def preview(
    policy: RolloutPolicy,
    slo: Slo,
    requests_per_second: float,
    minutes: float = 10.0,
    *,
    error_rate: float | None = None,
    median_ms: float = 100.0,
    seed: int = 0,
) -> Preview:
    """Return which regressions the policy's rollout would stop. The same seed gives the same answer.

    `error_rate` is stable's share (0 to 1) of failed requests, a fifth of what the SLO allows unless said.
    """
    base = slo.error_percent / 500.0 if error_rate is None else error_rate
    kinds = [("healthy", "", 0.0, 1.0)]
    kinds += [("error rate", _points(100 * more), more, 1.0) for more in ERRORS]
    kinds += [("latency", f"{times:g} times as high", 0.0, times) for times in SLOWER]
    edges = tuple(round(median_ms * edge, 4) for edge in EDGES)
    traffic = _Traffic(
        requests_per_second,
        np.stack([np.full(len(kinds) * RUNS, base), np.repeat([min(base + kind[2], 1.0) for kind in kinds], RUNS)], -1),
        np.repeat([_latencies(kind[3]) for kind in kinds], RUNS, 0),
        np.random.default_rng(seed),
    )
    stopped_s = _followed(policy, slo, edges, traffic, minutes * 60.0)
    rows = [
        DetectedRegression(what, size, float(np.quantile(each, SURE, method="inverted_cdf")))
        for (what, size, _, _), each in zip(kinds, stopped_s.reshape(len(kinds), RUNS), strict=True)
    ]
    return Preview(requests_per_second, minutes, tuple(rows[1:]))


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Invented requests: errors [runs, 2] and the candidate's latencies [runs, K + 1] as shares."""

    requests_per_second: float
    errors: Floats
    latencies: Floats
    random: np.random.Generator

    def window(self, percent: Floats) -> EvidenceWindow:
        """Return what `INTERVAL_S` seconds at these weights [runs] bring."""
        share = np.stack([1.0 - percent / 100.0, percent / 100.0], -1)
        requests = self.random.poisson(self.requests_per_second * INTERVAL_S * share)
        stable = self.random.multinomial(requests[:, 0], _latencies(1.0))
        candidate = self.random.multinomial(requests[:, 1], self.latencies)
        return EvidenceWindow(
            seconds=np.full(len(percent), INTERVAL_S),
            requests=requests.astype(float),
            errors=self.random.binomial(requests, self.errors).astype(float),
            latencies=np.stack([stable, candidate], 1).astype(float),
        )


def _followed(policy: RolloutPolicy, slo: Slo, edges: tuple[float, ...], traffic: _Traffic, lasts_s: float) -> Floats:
    """Return when each rollout was stopped, in seconds from its first request; or infinity."""
    # Without Shadow: it is about what callers' requests alone find.
    engine = replace(engine_policy(policy), shadow=None)
    gates = measured_gates(policy, slo, edges)
    shape = (len(traffic.errors),)
    progress, states = Progress.begun(-HISTORY_S, shape), {name: gate.start(shape) for name, gate in gates.items()}
    first_s, stopped_s = (np.full(shape, np.inf) for _ in range(2))
    for now_s in np.arange(-HISTORY_S, lasts_s, INTERVAL_S) + INTERVAL_S:
        window = traffic.window(weights(engine, progress.phase, progress.step))
        progress = watch(progress, window, now_s)
        states = {name: gate.update(states[name], window) for name, gate in gates.items()}
        judged = [gate.judge(states[name]) for name, gate in gates.items()]
        progress = next_transition(engine, progress, judged, Signals(ready=bool(now_s >= 0)), now_s).progress
        first_s = np.where(np.isinf(first_s) & (window.requests[:, CANDIDATE] > 0), now_s - INTERVAL_S, first_s)
        ends = np.isin(progress.phase, _ENDED) & np.isinf(stopped_s)
        stopped_s = np.where(ends, np.maximum(now_s - first_s, 0.0), stopped_s)
    return stopped_s


def _latencies(times: float) -> Floats:
    """Return the shares of requests by bin, `times` as slow as stable's."""
    below = [0.5 * (1.0 + math.erf(math.log(edge / times) / SIGMA / math.sqrt(2.0))) for edge in EDGES]
    return np.diff([0.0, *below, 1.0])


def _points(percent: float) -> str:
    return f"{percent:g} {'point' if percent == 1 else 'points'} higher"
