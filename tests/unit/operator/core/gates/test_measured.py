"""What the spec's gates become, and what they say of errors."""

from __future__ import annotations

import numpy as np
import pytest

from segserve_operator.api.rollout_policy import ErrorRateGate, LatencyGate, RolloutPolicy, RolloutStep, Slo
from segserve_operator.core.evidence import EvidenceWindow
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.rollout.policy import alpha_shares, engine_policy


def test_gates_share_alpha_and_rules_take_nothing() -> None:
    policy = RolloutPolicy(alpha=0.03)
    engine = engine_policy(policy)
    assert tuple(measured_gates(policy, Slo())) == ("errorRate", "latency", "burnRate")
    assert engine.levels == (pytest.approx(0.01), pytest.approx(0.01), 1e-12)
    assert alpha_shares(policy)["goldenQuality"] == pytest.approx(0.01)


def test_a_gate_with_a_larger_share_has_more_of_alpha() -> None:
    policy = RolloutPolicy(gates=(ErrorRateGate(alpha_share=3.0), LatencyGate()))
    assert engine_policy(policy).levels == (pytest.approx(0.0075), pytest.approx(0.0025))
    assert "goldenQuality" not in alpha_shares(policy)


def test_only_a_canary_goes_by_steps_and_evidence_sets_its_pace() -> None:
    steps = (RolloutStep(weight=10), RolloutStep(weight=50, pause=True))
    assert [step.minimum_s for step in engine_policy(RolloutPolicy(steps=steps)).steps] == [0.0, 0.0]
    timed = engine_policy(RolloutPolicy(steps=steps, pace="steps")).steps
    assert [(step.minimum_s, step.ask) for step in timed] == [(60.0, False), (60.0, True)]
    assert engine_policy(RolloutPolicy(strategy="blueGreen")).steps == ()


def explained(stable: tuple[float, float], candidate: tuple[float, float], windows: int = 20):
    gate = measured_gates(RolloutPolicy(), Slo())["errorRate"]
    state = gate.start()
    requests, errors = np.array([stable[0], candidate[0]]), np.array([stable[1], candidate[1]])
    for _ in range(windows):
        state = gate.update(state, EvidenceWindow(np.array(5.0), requests, errors, np.zeros((2, 1))))
    return gate.explain(state, 0.01)


def test_a_healthy_candidate_passes_with_the_bound_of_its_harm() -> None:
    verdict = explained((100.0, 0.0), (100.0, 0.0))
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["harm"] < 0.02
    assert "0 % of 2,000 requests failed" in verdict.message


def test_a_bad_candidate_breaches_with_both_rates() -> None:
    verdict = explained((100.0, 0.0), (100.0, 10.0))
    assert verdict.outcome is Outcome.BREACH
    assert verdict.progress == 1.0
    assert "10 % of 2,000 requests failed, stable 0 % of 2,000 requests" in verdict.message
    assert "of 1:100" in verdict.message


def test_where_both_fail_it_is_an_incident() -> None:
    verdict = explained((100.0, 10.0), (100.0, 10.0))
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.reason == "Incident"


def test_without_stable_there_is_no_verdict() -> None:
    assert explained((0.0, 0.0), (100.0, 100.0)).reason == "NoData"
