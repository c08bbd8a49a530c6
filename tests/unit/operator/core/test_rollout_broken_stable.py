"""A stable revision beyond the SLO: its fix goes on, and what both suffer holds."""

from __future__ import annotations

import numpy as np
import pytest

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.rollout.engine import WAITS, Progress, Signals, Transition, next_transition, watch, weights
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import engine_policy

RUNS = 20
FAST = np.searchsorted(EDGES_MS, 100.0)


def followed(stable: float, candidate: float, seconds: float = 900.0) -> Transition:
    """What rollouts of 100 requests/s have come to; stable and candidate fail so many (0 to 1) of their requests."""
    policy, slo, random = RolloutPolicy(), Slo(error_percent=1.0), np.random.default_rng(4)
    engine, gates = engine_policy(policy), measured_gates(policy, slo)
    progress, states = Progress.begun(0.0, (RUNS,)), {name: gate.start((RUNS,)) for name, gate in gates.items()}
    for now in np.arange(0.0, seconds, 5.0):
        weight = weights(engine, progress.phase, progress.step) / 100.0
        requests = random.poisson(500.0 * np.stack([1.0 - weight, weight], -1))
        bins = np.zeros((RUNS, 2, len(EDGES_MS) + 1))
        bins[..., FAST] = requests
        errors = random.binomial(requests, [stable, candidate])
        window = EvidenceWindow(np.full(RUNS, 5.0), requests.astype(float), errors.astype(float), bins)
        states = {name: gate.update(states[name], window) for name, gate in gates.items()}
        judged = [gate.judge(states[name]) for name, gate in gates.items()]
        transition = next_transition(engine, watch(progress, window, now + 5.0), judged, Signals(), now + 5.0)
        progress = transition.progress
    return transition


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_fix_of_a_broken_stable_is_promoted(share: float) -> None:
    assert np.isin(followed(share, 0.001).progress.phase, [Phase.BAKING, Phase.SUCCEEDED]).all()


def test_where_both_fail_the_rollout_is_held() -> None:
    transition = followed(0.2, 0.2)
    assert (transition.progress.phase == Phase.PROGRESSING).all()
    assert {WAITS[each].value for each in transition.waits_for} == {"Incident"}


def test_a_candidate_far_worse_than_a_broken_stable_is_rolled_back() -> None:
    assert (followed(0.05, 0.3).progress.phase == Phase.ROLLED_BACK).all()
