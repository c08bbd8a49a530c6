"""Power of a rollout policy, estimated in advance: the real engine and gates on a few hundred simulated rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import CANDIDATE, MAX_SLICES, Bools, EvidenceWindow, Floats, Pairs, SlicePairs
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.slices import NAME, Slices
from segserve_operator.core.rollout.engine import Progress, Signals, next_transition, watch, weights
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import alpha_shares, engine_policy
from segserve_operator.core.statistics.sliced import BLOCK_S

SHARES: Final = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""Parts of all requests that have one label."""
FAULTS: Final = (0.1, 0.5, 1.0)
"""Parts of the slice's requests that fail in addition."""

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
class JudgedSlice:
    """The smallest part of requests (0 to 1) whose slice is proved worse in nine of ten Shadows, None if it is more
    than half of them, if the share `more` (0 to 1) of its requests fails in addition."""

    more: float
    share: float | None

    def text(self) -> str:
        """Return it in words."""
        what = "all its requests fail" if self.more >= 1 else f"{100 * self.more:g} points more of its requests fail"
        if self.share is None:
            return f"slice of which {what}: may be missed, however large it is"
        return f"slice of which {what}: found if it has {100 * self.share:g} % of all requests"


def judged_slices(
    policy: RolloutPolicy, slo: Slo, requests_per_second: float, base: float, seed: int = 0
) -> tuple[JudgedSlice, ...]:
    """Return the smallest slices that Shadow can judge at that rate; nothing without the gate, or without Shadow.

    Slices are taken to be equally large: one of a tenth of all requests is one of ten. `base` is stable's share (0 to
    1) of failed requests.
    """
    shadow, level = policy.shadow, alpha_shares(policy).get(NAME)
    gate = measured_gates(policy, slo).get(NAME)
    if shadow is None or level is None or not isinstance(gate, Slices):
        return ()
    shares = np.array(SHARES)
    pairs_per_s = shadow.copies_per_second(requests_per_second)
    proof = np.log(np.minimum(np.round(1.0 / shares), MAX_SLICES)) - np.log(level)
    random, found = np.random.default_rng(seed), []
    names, nothing = tuple(map(str, SHARES)), Pairs.nothing((RUNS,))
    for more in FAULTS:
        fails = min(base + more, 1.0)
        cells = ((1 - base) * (1 - fails), (1 - base) * fails, base * (1 - fails), base * fails)
        state, proved = gate.start((RUNS,)), np.zeros((RUNS, len(SHARES)), bool)
        for _ in range(int(shadow.max_duration.total_seconds() // BLOCK_S)):
            pairs = random.poisson(pairs_per_s * BLOCK_S * shares, (RUNS, len(SHARES)))
            failed = random.multinomial(pairs, cells).reshape(RUNS, len(SHARES), 2, 2).astype(float)
            slices = replace(SlicePairs.nothing(names, (RUNS,)), failed=failed)
            window = replace(
                EvidenceWindow.nothing((RUNS,)),
                seconds=np.full(RUNS, BLOCK_S),
                pairs=replace(nothing, failed=failed.sum(1), slices=slices),
            )
            state = gate.update(state, window)
            proved |= gate.evidence(state) >= proof
        sure = proved.mean(0) >= SURE
        # A larger one that is missed by chance is no reason to promise a smaller one.
        largest = len(SHARES) if sure.all() else int(np.argmin(sure))
        found.append(JudgedSlice(more, SHARES[largest - 1] if largest else None))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class DetectedRegression:
    """A regression ("error rate", "5 points higher"; "latency", "1.5 times as high"), the share (0 to 1) of rollouts
    that stop it in that time, and after how many seconds nine of ten have; infinity where fewer do."""

    what: str
    size: str
    share: float
    seconds: float

    @property
    def detection(self) -> str:
        """Whether and when it is detected, in words."""
        if math.isfinite(self.seconds):
            return f"detected in about {_about(self.seconds)}"
        return f"may be missed: about {100 * self.share:.0f} % of rollouts detect it"


@dataclass(frozen=True, slots=True)
class Preview:
    """Detection of each regression, and the median time until a healthy candidate is promoted (infinity: never).

    `slices` are the smallest that Shadow can judge, with the gate of that name.
    """

    requests_per_second: float
    minutes: float
    rows: tuple[DetectedRegression, ...]
    promoted_s: float
    slices: tuple[JudgedSlice, ...] = ()

    def text(self) -> str:
        """Return a summary in a few lines."""
        lines = [f"{self.minutes:g} min at {self.requests_per_second:g} requests/s:"]
        for what in dict.fromkeys(row.what for row in self.rows):
            rows = [row for row in self.rows if row.what == what]
            lines += [f"  {what} {row.size}: {row.detection}" for row in rows]
        lines += [f"  {judged.text()}" for judged in self.slices]
        healthy = f"in about {_about(self.promoted_s)}" if math.isfinite(self.promoted_s) else "not in that time"
        return "\n".join([*lines, f"  a healthy revision is promoted {healthy}"])


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
    stopped_s, promoted_s = _followed(policy, slo, edges, traffic, minutes * 60.0)
    rows = [
        DetectedRegression(
            what, size, float(np.isfinite(each).mean()), float(np.quantile(each, SURE, method="inverted_cdf"))
        )
        for (what, size, _, _), each in zip(kinds, stopped_s.reshape(len(kinds), RUNS), strict=True)
    ]
    healthy = float(np.quantile(promoted_s[:RUNS], 0.5, method="inverted_cdf"))
    slices = judged_slices(policy, slo, requests_per_second, base, seed)
    return Preview(requests_per_second, minutes, tuple(rows[1:]), healthy, slices)


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


def _followed(
    policy: RolloutPolicy, slo: Slo, edges: tuple[float, ...], traffic: _Traffic, lasts_s: float
) -> tuple[Floats, Floats]:
    """Return when each rollout was stopped and when promoted, in seconds from its first request; or infinity."""
    # Without Shadow: it is about what callers' requests alone find.
    engine = replace(engine_policy(policy), shadow=None)
    gates = measured_gates(policy, slo, edges)
    shape = (len(traffic.errors),)
    progress, states = Progress.begun(-HISTORY_S, shape), {name: gate.start(shape) for name, gate in gates.items()}
    first_s, stopped_s, promoted_s = (np.full(shape, np.inf) for _ in range(3))
    for now_s in np.arange(-HISTORY_S, lasts_s, INTERVAL_S) + INTERVAL_S:
        window = traffic.window(weights(engine, progress.phase, progress.step))
        progress = watch(progress, window, now_s)
        states = {name: gate.update(states[name], window) for name, gate in gates.items()}
        judged = [gate.judge(states[name]) for name, gate in gates.items()]
        progress = next_transition(engine, progress, judged, Signals(ready=bool(now_s >= 0)), now_s).progress
        first_s = np.where(np.isinf(first_s) & (window.requests[:, CANDIDATE] > 0), now_s - INTERVAL_S, first_s)
        stopped_s = _since(first_s, stopped_s, np.isin(progress.phase, _ENDED), now_s)
        promoted_s = _since(first_s, promoted_s, progress.phase == Phase.BAKING, now_s)
    return stopped_s, promoted_s


def _since(first_s: Floats, known_s: Floats, now: Bools, now_s: float) -> Floats:
    first_seen_s: Floats = np.where(now & np.isinf(known_s), np.maximum(now_s - first_s, 0.0), known_s)
    return first_seen_s


def _latencies(times: float) -> Floats:
    """Return the shares of requests by bin, `times` as slow as stable's."""
    below = [0.5 * (1.0 + math.erf(math.log(edge / times) / SIGMA / math.sqrt(2.0))) for edge in EDGES]
    return np.diff([0.0, *below, 1.0])


def _points(percent: float) -> str:
    return f"{percent:g} {'point' if percent == 1 else 'points'} higher"


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
