"""The gate `burnRate`: a rule over two windows, after promotion."""

from __future__ import annotations

import numpy as np

from segserve_operator.core.evidence import EvidenceWindow
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.burn_rate import BurnRate, BurnState

GATE = BurnRate(slo_rate=0.01, factor=14.4, long_s=600.0)


def window(requests: tuple[float, float], bad: float, seconds: float = 1.0) -> EvidenceWindow:
    return EvidenceWindow(np.array(seconds), np.array(requests), np.array([0.0, bad]), np.zeros((2, 3)))


def served(seconds: int, bad: float, state: BurnState | None = None, stable: float = 0.0) -> BurnState:
    state = GATE.start() if state is None else state
    for _ in range(seconds):
        state = GATE.update(state, window((stable, 10.0), bad))
    return state


def burns(state: BurnState) -> bool:
    return bool(GATE.judge(state).breach == np.inf)


def test_before_promotion_it_says_nothing() -> None:
    state = served(300, 10.0, stable=10.0)
    assert not burns(state)
    assert GATE.explain(state, 1e-12).reason == "NotPromoted"


def test_a_fifth_of_all_requests_failing_for_long_breaches_and_a_hundredth_does_not() -> None:
    assert burns(served(600, 2.0))
    assert not burns(served(600, 0.1))


def test_a_short_incident_soon_after_promotion_is_no_breach() -> None:
    assert not burns(served(30, 10.0))
    assert burns(served(100, 10.0))


def test_what_is_over_is_no_breach_any_more() -> None:
    failed = served(150, 10.0)
    assert burns(failed)
    assert not burns(served(60, 0.0, failed))


def test_a_handful_of_bad_requests_is_asked_for() -> None:
    state = GATE.start()
    for _ in range(60):
        state = GATE.update(state, window((0.0, 0.1), 0.1, 10.0))
    assert not burns(state)


def test_time_without_requests_passes() -> None:
    failed = served(150, 10.0)
    for _ in range(60):
        failed = GATE.update(failed, window((0.0, 0.0), 0.0, 10.0))
    assert not failed.bad.any()


def test_slow_requests_burn_their_own_budget() -> None:
    gate = BurnRate(0.01, 5.0, 600.0, slo_ms=((0.95, 20.0),), edges=(10.0, 20.0))
    state, bins = gate.start(), np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 5.0]])
    for _ in range(600):
        state = gate.update(state, EvidenceWindow(np.array(1.0), np.array([0.0, 10.0]), np.zeros(2), bins))
    verdict = gate.explain(state, 1e-12)
    assert verdict.outcome is Outcome.BREACH
    assert "above the SLO's p95" in verdict.message
    assert round(verdict.numbers["long"]) == 10
