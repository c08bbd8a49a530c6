"""What the engine goes by: every registered gate that tests has its share of alpha, and each its tolerance."""

from __future__ import annotations

from typing import Any

import pytest

from segserve_operator.api.rollout_policy import DEFAULT_GATES, BurnRateGate, ErrorRateGate, RolloutPolicy
from segserve_operator.core.gates import GATES
from segserve_operator.core.gates.base import MeasuredGateType
from segserve_operator.core.rollout.policy import RULE_LEVEL, alpha_shares, engine_policy

MEASURED = {name: gate for name, gate in GATES.items() if isinstance(gate, MeasuredGateType)}
TESTING = [name for name, gate in MEASURED.items() if not gate.is_rule]
RULES = [name for name, gate in MEASURED.items() if gate.is_rule]


def with_gates(*gates: Any, alpha: float = 0.03) -> RolloutPolicy:
    return RolloutPolicy(alpha=alpha).model_copy(update={"gates": gates})


@pytest.mark.parametrize("name", TESTING)
def test_a_gate_that_tests_can_prove_something_at_its_part_of_alpha(name: str) -> None:
    alone = engine_policy(with_gates(GATES[name].spec()))

    assert alone.levels == (pytest.approx(0.03),)
    assert 0.0 < alone.tolerances[0] < 1.0


@pytest.mark.parametrize("name", RULES)
def test_a_gate_that_is_a_rule_takes_nothing_of_alpha(name: str) -> None:
    together = engine_policy(with_gates(ErrorRateGate(), GATES[name].spec()))

    assert together.levels == (pytest.approx(0.03), RULE_LEVEL)


def test_a_gate_that_tests_without_a_share_is_an_error_and_not_one_that_never_proves_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(GATES, "burnRate", MEASURED["errorRate"])  # type: ignore[arg-type]

    with pytest.raises(KeyError, match="burnRate"):
        engine_policy(with_gates(ErrorRateGate(), BurnRateGate()))


def test_all_shares_together_are_alpha() -> None:
    policy = with_gates(*DEFAULT_GATES)
    tested = [level for level in engine_policy(policy).levels if level != RULE_LEVEL]

    assert sum(tested) + alpha_shares(policy)["goldenQuality"] == pytest.approx(0.03)
