"""The gate `loadTest`: how the candidate bears the rate of requests that its first step brings.

Only Shadow asks so, once, for half a minute, and the candidate alone: no caller waits for it. One test on shared
machines is no sequential evidence, and takes none of alpha: it finds what is clearly out of bounds, far beyond what
chance would do to independent requests, and by default asks a person. Later windows change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from segserve_operator.api.rollout_policy import LoadTestGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, EvidenceWindow, Floats, Judgement, LoadEvidence
from segserve_operator.core.gates.base import Edges, MeasuredGateType, OnBreach, Outcome, Verdict
from segserve_operator.core.statistics.past import StablePast

NAME: Final = "loadTest"
FAILS: Final = "FailsUnderLoad"
SLOW: Final = "SlowUnderLoad"
UNDER_LOAD: Final = frozenset({FAILS, SLOW})
"""Reasons of verdicts of what is out of bounds, whatever follows from it."""
CHANCE: Final = float(np.log(1000.0))
"""Largest log odds that chance would have made independent requests as bad as these."""
SLOWER: Final = 2.0
"""Without an objective for latencies: ratio to the larger p95 of the pairs, which 5 % of answers may exceed."""
NOISE_MS: Final = 20.0
ENOUGH: Final = 0.9
"""Part of the rate that is as good as all of it."""
_ADVICE: Final = {
    OnBreach.HOLD: "; a person decides: resume goes on, abort stops it",
    OnBreach.ROLLBACK: "",
    OnBreach.NOTE: "; noted only",
}


@dataclass(frozen=True, slots=True)
class LoadState:
    """Counts of Shadow's pairs and of the test so far.

    latencies [..., 2, K + 1], pairs, pairs_failed [...]: of stable and the candidate, and the candidate's failures, at
    the rate of the copies. awaited [...]: 1 while a gateway's test has not ended. The rest is as in `LoadEvidence`.
    """

    latencies: Floats
    pairs: Floats
    pairs_failed: Floats
    awaited: Floats
    able: Floats
    ended: Floats
    stopped: Floats
    wanted_per_s: Floats
    asked_per_s: Floats
    answered_per_s: Floats
    asked: Floats
    failed: Floats
    load_latencies: Floats

    @property
    def is_done(self) -> Bools:
        """Whether all gateways that can have ended their test."""
        done: Bools = (self.able > 0) & (self.ended >= self.able)
        return done


@dataclass(frozen=True, slots=True)
class Load:
    """Finds a candidate that at the rate of its first step fails, or misses the objectives for latencies [(q, ms)]."""

    error_rate: float
    objectives: tuple[tuple[float, float], ...]
    tolerated_slow: float
    edges: Edges
    on_breach: OnBreach = OnBreach.HOLD

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> LoadState:
        """Return the state before any window; `past` changes nothing."""
        bins = len(self.edges) + 1
        none = np.zeros(shape)
        return LoadState(
            latencies=np.zeros((*shape, 2, bins)),
            pairs=none,
            pairs_failed=none,
            awaited=none,
            able=none,
            ended=none,
            stopped=none,
            wanted_per_s=none,
            asked_per_s=none,
            answered_per_s=none,
            asked=none,
            failed=none,
            load_latencies=np.zeros((*shape, bins)),
        )

    def again(self, former: LoadState) -> LoadState:
        """Return the state before any window of a rollout that begins as a former one did."""
        return self.start(former.pairs.shape)

    def informed(self, state: LoadState, past: StablePast) -> LoadState:
        """Return the same state, since `past` changes nothing."""
        return state

    def update(self, state: LoadState, window: EvidenceWindow) -> LoadState:
        """Return the state after one more window. Requests of callers end all waiting: Shadow is over."""
        if window.pairs is None:
            return replace(state, awaited=np.zeros(state.awaited.shape))
        after = replace(
            state,
            latencies=state.latencies + window.latencies,
            pairs=state.pairs + window.requests[..., CANDIDATE],
            pairs_failed=state.pairs_failed + window.errors[..., CANDIDATE],
            **_kept(state, window.pairs.load),
        )
        return replace(after, awaited=np.where((after.able > 0) & ~after.is_done, 1.0, 0.0))

    def after_shadow(self, state: LoadState) -> LoadState:
        """Return the state with which a rollout goes on to callers: what was found, as a record."""
        return replace(state, awaited=np.zeros(state.awaited.shape))

    def judge(self, state: LoadState) -> Judgement:
        """Return the judgement: infinite evidence of what is clearly out of bounds, else none. Harm is none."""
        breach = np.where(self._fails(state) | self._is_slow(state), np.inf, 0.0)
        return Judgement.of_evidence(breach, enough=state.awaited == 0)

    def explain(self, state: LoadState, level: float) -> Verdict:
        """Return the verdict on one rollout, with the rate, both p95 and what the servers lack."""
        undecided = self._untested(state)
        if undecided is not None:
            return undecided
        p95_ms, alone_ms, stable_ms = (
            float(_p95_ms(bins, self.edges))
            for bins in (state.load_latencies, state.latencies[CANDIDATE], state.latencies[STABLE])
        )
        wanted, answered = float(state.wanted_per_s), float(state.answered_per_s)
        numbers = {
            "asked": float(state.asked),
            "failed": float(state.failed),
            "asked_per_s": float(state.asked_per_s),
            "answered_per_s": answered,
            "wanted_per_s": wanted,
            "p95_ms": p95_ms,
        }
        message = f"at {_rate(state)} requests/s its p95 is {_time(p95_ms)}{self._objective()}"
        message = f"{message} ({_time(alone_ms)} at the rate of the copies, stable {_time(stable_ms)})"
        fails, slow = bool(self._fails(state)), bool(self._is_slow(state))
        if state.failed:
            message = f"{message}; {float(state.failed):,.0f} of {float(state.asked):,.0f} requests failed or hung"
        if not (fails or slow):
            if float(state.asked_per_s) < ENOUGH * wanted:
                message = f"{message}; its first step brings {wanted:.3g}/s, more than was tried"
            return Verdict(NAME, Outcome.PASS, "BearsLoad", message, numbers=numbers)
        if answered < ENOUGH * wanted:
            needed = f"about {wanted / answered:.1f} times as many servers" if answered else "more servers"
            message = (
                f"{message}; it answers {answered:.3g} of {wanted:.3g} requests/s and needs {needed} or faster ones"
            )
        outcome = Outcome.BREACH if self.on_breach is OnBreach.ROLLBACK else Outcome.UNDECIDED
        return Verdict(NAME, outcome, FAILS if fails else SLOW, f"{message}{_ADVICE[self.on_breach]}", 1.0, numbers)

    def _untested(self, state: LoadState) -> Verdict | None:
        """Return the verdict where there is nothing to judge, None where there is."""
        if state.awaited:
            message = "the candidate is to be asked at the rate of its first step"
            return Verdict(NAME, Outcome.UNDECIDED, "Testing", message)
        if state.stopped:
            message = "the load test ended early: stable became slower, so both share what is short"
            return Verdict(NAME, Outcome.UNDECIDED, "Stopped", message)
        if state.pairs and not state.able:
            return Verdict(NAME, Outcome.UNDECIDED, "NotTested", "no gateway's comparator can ask at a rate")
        if not state.asked:
            return Verdict(NAME, Outcome.UNDECIDED, "NoData", "the candidate was not asked at a rate")
        return None

    def _objective(self) -> str:
        limit_ms = next((limit_ms for quantile, limit_ms in self.objectives if quantile == 0.95), None)
        return "" if limit_ms is None else f"; the SLO is {_time(limit_ms)}"

    def _fails(self, state: LoadState) -> Bools:
        alone = state.pairs_failed / np.maximum(state.pairs, 1.0)
        return _is_tested(state) & _exceeds(state.failed, state.asked, np.maximum(alone, self.error_rate))

    def _is_slow(self, state: LoadState) -> Bools:
        slow: Bools = np.zeros(state.pairs.shape, bool)
        answers, pairs = state.load_latencies.sum(-1), np.maximum(state.latencies.sum(-1), 1.0)
        for quantile, limit_ms in self.objectives:
            above = np.array((0.0, *self.edges)) >= limit_ms
            before = (state.latencies @ above / pairs).max(-1)
            allowed = np.maximum(before, 1.0 - quantile) + self.tolerated_slow
            slow = slow | _exceeds(state.load_latencies @ above, answers, allowed)
        if not self.objectives:
            usual_ms = np.max(_p95_ms(state.latencies, self.edges), -1)
            above = np.array((0.0, *self.edges)) >= (SLOWER * usual_ms + NOISE_MS)[..., None]
            slow = _exceeds((state.load_latencies * above).sum(-1), answers, np.full(answers.shape, 0.05))
        return slow & _is_tested(state)


def is_awaited(states: Mapping[str, Any]) -> bool:
    """Tell whether a rollout, by its gates' states, waits for the end of a load test."""
    state = states.get(NAME)
    return isinstance(state, LoadState) and bool(state.awaited)


def _kept(state: LoadState, new: LoadEvidence) -> dict[str, Floats]:
    """Return the fields of a test: those of one that has ended stay as they are."""
    done, kept = state.is_done, {}
    for field in fields(new):
        name = "load_latencies" if field.name == "latencies" else field.name
        old, value = getattr(state, name), getattr(new, field.name)
        kept[name] = np.where(done[..., None] if field.name == "latencies" else done, old, value)
    return kept


def _is_tested(state: LoadState) -> Bools:
    tested: Bools = state.is_done & (state.stopped == 0) & (state.asked > 0)
    return tested


def _exceeds(count: Floats, total: Floats, allowed: Floats) -> Bools:
    """Tell whether so many of so many are beyond a share and its chance, by Chernoff's bound of the binomial's tail."""
    limit = np.clip(allowed, 1e-6, 1.0 - 1e-6)
    share = np.clip(count / np.maximum(total, 1.0), 1e-12, 1.0 - 1e-12)
    divergence = share * np.log(share / limit) + (1.0 - share) * np.log((1.0 - share) / (1.0 - limit))
    beyond: Bools = (share > limit) & (total * divergence >= CHANCE)
    return beyond


def _p95_ms(bins: Floats, edges: Edges) -> Floats:
    """Return the upper edge [...] of the bin in which 95 % of answers [..., K + 1] are reached; 0 without any."""
    total = bins.sum(-1)
    index = (bins.cumsum(-1) < 0.95 * total[..., None]).sum(-1)
    upper: Floats = np.array(edges)[np.minimum(index, len(edges) - 1)]
    return np.where(total > 0, upper, 0.0)


def _rate(state: LoadState) -> str:
    return f"{float(state.asked_per_s):.3g}"


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _build(spec: LoadTestGate, slo: Slo, policy: RolloutPolicy, edges: Edges) -> Load:
    tolerance = policy.tolerance
    error_rate = (slo.error_percent + tolerance.error_percent) / 100.0
    return Load(error_rate, slo.latencies, tolerance.slow_percent / 100.0, edges, OnBreach(spec.on_breach))


# What half a minute shows says nothing about the share of callers' requests: the gate reports no harm.
GATE: Final = MeasuredGateType(
    LoadTestGate, _build, lambda _: 0.5, is_rule=True, on_breach=lambda spec: OnBreach(spec.on_breach)
)
