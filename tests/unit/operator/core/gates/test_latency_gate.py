"""The gate `latency`: what counts as slow, and what it says."""

from __future__ import annotations

import math

import numpy as np

from fakes.cases import cases
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.latency import WARM_UP_S, Latency

EDGES = tuple(float(f"{each:.3g}") for each in np.geomspace(20.0, 2000.0, 45))
GATE = Latency(tolerance=0.03, edges=EDGES)
LEVEL = 1 / 300
ODDS = math.log(300.0)


def shares(median_ms: float, tail: float = 0.0) -> np.ndarray:
    """Log-normal latencies by bin; of `tail` of the requests four times as long."""
    below = [
        (1 - tail) * _normal(math.log(edge / median_ms) / 0.6) + tail * _normal(math.log(edge / median_ms / 4) / 0.6)
        for edge in EDGES
    ]
    return np.diff([0.0, *below, 1.0])


def _normal(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def breached(
    gate: Latency = GATE, times: float = 1.0, tail: float = 0.0, slower: float = 1.0, rps: float = 100.0, runs: int = 50
) -> np.ndarray:
    """When each rollout breaches; the candidate is `times` as slow, and both are `slower` in the second minute."""
    random = np.random.default_rng(3)
    state, found = gate.start((runs,)), np.full(runs, np.inf)
    for now in range(-60, 240):
        factor = slower if 60 <= now < 120 else 1.0
        requests = random.poisson([rps / 2, rps / 2 if now >= 0 else 0.0], (runs, 2))
        stable = random.multinomial(requests[:, 0], shares(100 * factor))
        candidate = random.multinomial(requests[:, 1], shares(100 * factor * times, tail))
        bins = np.stack([stable, candidate], 1).astype(float)
        state = gate.update(state, EvidenceWindow(np.ones(runs), requests.astype(float), np.zeros((runs, 2)), bins))
        judged = gate.judge(state)
        found = np.where(np.isinf(found) & (judged.breach >= ODDS), now + 1.0, found)
    return found


def test_a_candidate_as_fast_as_stable_is_never_accused_also_while_both_are_slow() -> None:
    assert np.isinf(breached(slower=2.0)).all()
    assert np.isinf(breached(slower=2.0, rps=10.0)).all()


@cases(
    ("fault", "within_s"),
    {
        "half as slow again": ({"times": 1.5}, 80.0),
        "twice as slow at 10 requests/s": ({"times": 2.0, "rps": 10.0}, 80.0),
        "the tail alone": ({"tail": 0.08}, 200.0),
    },
)
def test_a_slow_candidate_is_found_within(fault: dict[str, float], within_s: float) -> None:
    assert np.median(breached(**fault)) <= within_s


def test_what_is_within_the_tolerance_is_no_breach() -> None:
    assert np.isinf(breached(times=1.05)).all()


def window(stable: dict[float, int], candidate: dict[float, int], seconds: float = 15.0) -> EvidenceWindow:
    bins = np.zeros((2, len(EDGES_MS) + 1))
    for role, latencies in enumerate((stable, candidate)):
        for milliseconds, count in latencies.items():
            bins[role, np.searchsorted(EDGES_MS, milliseconds, side="right")] += count
    return EvidenceWindow(np.array(seconds), bins.sum(-1), np.zeros(2), bins)


def test_a_request_at_the_slo_is_fast_and_one_in_the_bin_of_the_next_edge_is_not() -> None:
    gate = Latency(0.03, slo_ms=((0.95, 250.0),))
    state = gate.start()
    for _ in range(4):
        state = gate.update(state, window({100.0: 99, 280.0: 1}, {100.0: 100}))
    assert not gate.judge(state).incident
    for _ in range(4):
        state = gate.update(state, window({100.0: 50, 280.0: 50}, {100.0: 100}))
    assert gate.judge(state).incident


def test_hung_requests_count_as_slow() -> None:
    state = GATE.start()
    bins = np.zeros((2, len(EDGES) + 1))
    bins[0, 20], bins[1, 20], bins[1, -1] = 200.0, 100.0, 100.0
    for _ in range(10):
        state = GATE.update(state, EvidenceWindow(np.array(15.0), bins.sum(-1), np.zeros(2), bins))
    assert GATE.judge(state).breach > ODDS


def test_the_first_answers_of_a_cold_candidate_are_no_evidence() -> None:
    gate, state = Latency(0.03), Latency(0.03).start()
    for _ in range(int(WARM_UP_S)):
        state = gate.update(state, window({100.0: 100}, {3000.0: 100}, seconds=1.0))
    assert not state.total[1].any()


def test_the_verdict_names_latencies_and_how_near_the_proof_is() -> None:
    gate, state = Latency(0.03), Latency(0.03).start()
    assert gate.explain(state, LEVEL).outcome is Outcome.UNDECIDED
    for _ in range(20):
        state = gate.update(state, window({100.0: 90, 300.0: 10}, {200.0: 90, 600.0: 10}))
    verdict = gate.explain(state, LEVEL)
    assert verdict.outcome is Outcome.BREACH
    assert verdict.progress == 1.0
    assert verdict.numbers["stable_p50_ms"] == 110.0
    assert verdict.numbers["candidate_p50_ms"] == 220.0
    assert "p50 220 ms and p95 620 ms, stable 110 and 330 ms" in verdict.message
