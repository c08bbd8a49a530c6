"""The result of an A/B test: what is counted, and how often its interval misses the difference."""

from __future__ import annotations

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow, Pairs
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.ab_test import BETTER, NAME, OPEN, WORSE, AbTestResult, AbTestState
from segserve_operator.core.gates.base import Outcome

RUNS = 200
GATE = AbTestResult()


def window(requests: object, errors: object, seconds: float = 10.0) -> EvidenceWindow:
    counted = np.asarray(requests, float)
    latencies = np.zeros((*counted.shape, len(EDGES_MS) + 1))
    return EvidenceWindow(np.full(counted.shape[:-1], seconds), counted, np.asarray(errors, float), latencies)


def after(blocks: int, shares: tuple[float, float], runs: int = RUNS) -> tuple[AbTestState, np.ndarray]:
    """Return states after so many blocks, and whether the interval held the difference at each look so far."""
    random, state, held = np.random.default_rng(5), GATE.start((runs,)), np.ones(runs, bool)
    for block in range(blocks):
        requests = random.poisson(40, (runs, 2))
        state = GATE.update(state, window(requests, random.binomial(requests, shares)))
        if block % 20 == 19:
            low, high = GATE.difference(state)
            held &= (low <= shares[1] - shares[0]) & (shares[1] - shares[0] <= high)
    return state, held


def test_the_interval_holds_the_difference_at_all_looks_and_finds_one_that_there_is() -> None:
    for shares, found in (((0.05, 0.05), 0.0), ((0.02, 0.12), 1.0)):
        state, held = after(400, shares)
        low, _ = GATE.difference(state)

        assert held.mean() >= 0.95
        assert (low > 0).mean() >= found or found == 0.0
        assert found or (low > 0).mean() <= 0.05


def test_a_result_has_a_reason_and_its_figures() -> None:
    for shares, reason in (((0.5, 0.0), BETTER), ((0.0, 0.5), WORSE), ((0.2, 0.2), OPEN)):
        state, _ = after(100, shares, 1)
        verdict = GATE.explain(AbTestState(*(getattr(state, name)[0] for name in AbTestState.__slots__)), 0.01)

        assert verdict.reason == reason
        assert (verdict.outcome is Outcome.PASS) == (reason == BETTER)
        assert verdict.numbers["low"] <= verdict.numbers["difference"] <= verdict.numbers["high"]


def test_many_tests_are_what_each_is_alone() -> None:
    random = np.random.default_rng(3)
    many, alone = GATE.start((4,)), [GATE.start() for _ in range(4)]
    for _ in range(30):
        requests = random.poisson(8, (4, 2))
        errors = random.binomial(requests, 0.3)
        many = GATE.update(many, window(requests, errors, 5.0))
        alone = [GATE.update(s, window(r, e, 5.0)) for s, r, e in zip(alone, requests, errors, strict=True)]

    for index, state in enumerate(alone):
        for name in AbTestState.__slots__:
            assert np.array_equal(getattr(many, name)[index], getattr(state, name))


def test_time_without_requests_to_one_of_them_is_left_out() -> None:
    state = GATE.start()
    for _ in range(30):
        state = GATE.update(state, window((50, 0), (50, 0)))

    assert state.counts.sum() == 0
    assert GATE.explain(state, 0.01).reason == OPEN
    assert [float(bound) for bound in GATE.difference(state)] == [-1.0, 1.0]


def test_copies_are_no_requests_of_the_test() -> None:
    pairs = EvidenceWindow.of_pairs(np.array(10.0), np.zeros((2, len(EDGES_MS) + 1)), Pairs.nothing())

    assert GATE.update(GATE.start(), pairs).seconds == 0


def test_slow_requests_are_those_above_the_declared_latency() -> None:
    test = {"duration": "1h", "metric": "slowRate", "slowMilliseconds": 100}
    policy = RolloutPolicy.model_validate({"strategy": "abTest", "abTest": test})
    gate, latencies = measured_gates(policy, Slo(), (50.0, 100.0, 200.0))[NAME], np.zeros((2, 4))
    latencies[0] = (0, 20, 0, 0)
    latencies[1] = (0, 5, 10, 5)
    counted = EvidenceWindow(np.array(10.0), np.array([20.0, 20.0]), np.zeros(2), latencies)
    state = gate.update(gate.start(), counted)

    assert state.hits.tolist() == [0.0, 15.0]
