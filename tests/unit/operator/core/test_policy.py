"""What the engine goes by: every gate that is registered has its part of alpha and its tolerance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from segserve_operator.api.rollout_policy import DEFAULT_GATES, GATES, BurnRateGate, ErrorRateGate, RolloutPolicy, Slo
from segserve_operator.core.gates import MEASURED, measured
from segserve_operator.core.rollout.policy import RULE_LEVEL, engine_policy, golden_level

TESTING = [kind for kind, entry in MEASURED.items() if not entry.is_rule]
RULES = [kind for kind, entry in MEASURED.items() if entry.is_rule]


class QueueTimeGate(ErrorRateGate):
    """A gate that somebody adds."""

    gate: Any = "queueTime"


class WithoutShareGate(BurnRateGate):
    """One whose author forgot its share."""

    gate: Any = "queueTime"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with one gate more."""
    entry = replace(MEASURED["errorRate"], tolerated=lambda policy: 0.07)
    monkeypatch.setitem(measured.MEASURED, "queueTime", entry)


def with_gates(*gates: Any, alpha: float = 0.03) -> RolloutPolicy:
    return RolloutPolicy(alpha=alpha).model_copy(update={"gates": gates})


@pytest.mark.parametrize("kind", TESTING)
def test_a_gate_that_tests_can_prove_something_at_its_part_of_alpha(kind: str) -> None:
    alone = engine_policy(with_gates(GATES[kind]()))

    assert alone.levels == (pytest.approx(0.03),)
    assert 0.0 < alone.tolerances[0] < 1.0


@pytest.mark.parametrize("kind", RULES)
def test_a_gate_that_is_a_rule_takes_nothing_of_alpha(kind: str) -> None:
    together = engine_policy(with_gates(ErrorRateGate(), GATES[kind]()), Slo())

    assert together.levels == (pytest.approx(0.03), RULE_LEVEL)


@pytest.mark.parametrize("kind", MEASURED)
def test_what_tests_declares_a_share_and_what_is_a_rule_does_not(kind: str) -> None:
    assert ("alpha_share" in GATES[kind].model_fields) is not MEASURED[kind].is_rule


@pytest.mark.usefixtures("registry")
def test_a_gate_that_is_added_has_its_share_and_its_tolerance_without_a_word_elsewhere() -> None:
    engine = engine_policy(with_gates(ErrorRateGate(), QueueTimeGate(alpha_share=2.0)), Slo())

    assert engine.levels == (pytest.approx(0.01), pytest.approx(0.02))
    assert engine.tolerances[1] == 0.07


@pytest.mark.usefixtures("registry")
def test_a_gate_that_tests_without_a_share_is_an_error_and_not_one_that_never_proves_anything() -> None:
    with pytest.raises(KeyError, match="queueTime"):
        engine_policy(with_gates(ErrorRateGate(), WithoutShareGate()), Slo())


def test_all_shares_together_are_alpha() -> None:
    policy = with_gates(*DEFAULT_GATES)
    tested = [level for level in engine_policy(policy).levels if level != RULE_LEVEL]

    assert sum(tested) + golden_level(policy) == pytest.approx(0.03)
