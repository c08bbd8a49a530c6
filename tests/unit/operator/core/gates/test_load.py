"""The gate `loadTest`: what a candidate does at the rate of its first step, and what its verdict says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segserve_operator.api.rollout_policy import LoadTestGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow, LoadEvidence, Pairs
from segserve_operator.core.gates.base import OnBreach, Outcome
from segserve_operator.core.gates.load import GATE, Load, LoadState

LEVEL = 1e-12
BINS = len(EDGES_MS) + 1


def gate(slo: Slo | None = None, on_breach: OnBreach = OnBreach.HOLD) -> Load:
    built = GATE.build(
        LoadTestGate(on_breach=on_breach.value), slo or Slo(p95_milliseconds=250), RolloutPolicy(), EDGES_MS
    )
    assert isinstance(built, Load)
    return built


def bins(**counts: int) -> np.ndarray:
    """Return so many answers by latency: `bins(ms100=5)`."""
    filled = np.zeros(BINS)
    for name, count in counts.items():
        filled[np.searchsorted(EDGES_MS, float(name.removeprefix("ms")), side="right")] += count
    return filled


def found(latencies: np.ndarray, *, failed: int = 0, wanted: float = 50.0, answered: float = 50.0) -> LoadEvidence:
    numbers = map(np.array, (1.0, 1.0, 0.0, wanted, wanted, answered, latencies.sum() + failed, float(failed)))
    return LoadEvidence(*numbers, latencies)


def window(load: LoadEvidence | None = None, pairs_ms: str = "ms100", slow_pairs: int = 0) -> EvidenceWindow:
    both = np.stack([bins(**{pairs_ms: 200}), bins(**{pairs_ms: 200 - slow_pairs}, ms900=slow_pairs)])
    pairs = replace(Pairs.nothing(), failed=np.array([[200.0, 0.0], [0.0, 0.0]]))
    if load is not None:
        pairs = replace(pairs, load=load)
    return EvidenceWindow.of_pairs(np.array(60.0), both, pairs)


def seen(load: LoadEvidence, judging: Load | None = None) -> LoadState:
    judge = judging or gate()
    return judge.update(judge.start(), window(load))


def breaches(state: LoadState, judging: Load | None = None) -> bool:
    return bool(np.isinf((judging or gate()).judge(state).breach))


SLOW = found(bins(ms110=100, ms2100=50), answered=10.0)


def test_a_candidate_that_is_fine_at_the_rate_of_the_copies_and_slow_at_that_of_its_first_step_is_held() -> None:
    state = seen(SLOW)
    verdict = gate().explain(state, LEVEL)

    assert breaches(state)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "SlowUnderLoad")
    assert "at 50 requests/s its p95 is 2.2 s; the SLO is 250 ms" in verdict.message
    assert "it answers 10 of 50 requests/s and needs about 5.0 times as many servers" in verdict.message
    assert "a person decides" in verdict.message


def test_a_rollback_is_called_a_breach_and_a_note_is_none() -> None:
    back, note = gate(on_breach=OnBreach.ROLLBACK), gate(on_breach=OnBreach.NOTE)

    assert back.explain(seen(SLOW, back), LEVEL).outcome is Outcome.BREACH
    assert note.explain(seen(SLOW, note), LEVEL).outcome is Outcome.UNDECIDED


def test_a_candidate_that_bears_the_rate_passes_with_its_figures() -> None:
    state = seen(found(bins(ms110=1500)))
    verdict = gate().explain(state, LEVEL)

    assert not breaches(state)
    assert (verdict.outcome, verdict.reason) == (Outcome.PASS, "BearsLoad")
    assert verdict.numbers["asked_per_s"] == 50.0


def test_failures_at_the_rate_hold_it_and_a_few_that_the_slo_allows_do_not() -> None:
    assert breaches(seen(found(bins(ms110=1300), failed=200)))
    assert (
        "200 of 1,500 requests failed or hung"
        in gate().explain(seen(found(bins(ms110=1300), failed=200)), LEVEL).message
    )
    assert not breaches(seen(found(bins(ms110=1490), failed=10)))


def test_what_chance_would_do_to_few_requests_is_no_proof() -> None:
    assert not breaches(seen(found(bins(ms110=17, ms900=3))))
    assert not breaches(seen(found(bins(ms110=29), failed=1)))


def test_what_is_slow_at_the_rate_of_the_copies_already_is_not_blamed_on_the_load() -> None:
    judging = gate()
    state = judging.update(judging.start(), window(found(bins(ms110=1300, ms900=200)), slow_pairs=30))

    assert not breaches(state, judging)


def test_without_an_objective_it_may_take_twice_as_long_as_the_pairs_did() -> None:
    judging = gate(Slo())

    assert not breaches(seen(found(bins(ms180=1500)), judging), judging)
    assert breaches(seen(found(bins(ms430=1500)), judging), judging)


def test_shadow_waits_for_a_test_that_a_gateway_can_make_and_for_no_other() -> None:
    judging = gate()
    able = replace(LoadEvidence.nothing(), able=np.array(2.0), ended=np.array(1.0))
    waits = judging.update(judging.start(), window(able))
    cannot = judging.update(judging.start(), window())

    assert not judging.judge(waits).enough
    assert judging.explain(waits, LEVEL).reason == "Testing"
    assert judging.judge(judging.after_shadow(waits)).enough
    assert judging.judge(judging.update(waits, EvidenceWindow.nothing())).enough
    assert judging.judge(cannot).enough
    assert judging.explain(cannot, LEVEL).reason == "NotTested"


def test_a_test_that_was_ended_since_stable_became_slower_proves_nothing() -> None:
    state = seen(replace(SLOW, stopped=np.array(1.0)))

    assert not breaches(state)
    assert gate().judge(state).enough
    assert gate().explain(state, LEVEL).reason == "Stopped"


def test_a_test_that_has_ended_is_not_made_undone_by_a_gateway_that_comes_later() -> None:
    judging = gate()
    later = replace(LoadEvidence.nothing(), able=np.array(2.0), ended=np.array(1.0))
    state = judging.update(seen(SLOW, judging), window(later))

    assert breaches(state, judging)
    assert judging.judge(state).enough


def test_a_rate_beyond_what_is_tried_is_said_to_be_so() -> None:
    tried = replace(found(bins(ms110=6000)), wanted_per_s=np.array(400.0), asked_per_s=np.array(200.0))

    assert "its first step brings 400/s, more than was tried" in gate().explain(seen(tried), LEVEL).message


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_many_rollouts_are_judged_like_one(shape: tuple[int, ...]) -> None:
    judging = gate()
    one = window(SLOW)
    assert one.pairs is not None

    def repeated(value: np.ndarray) -> np.ndarray:
        return np.broadcast_to(value, (*shape, *value.shape))

    load = LoadEvidence(*(repeated(getattr(SLOW, name)) for name in LoadEvidence.__dataclass_fields__))
    pairs = replace(Pairs.nothing(shape), load=load)
    many = EvidenceWindow(*(repeated(each) for each in (one.seconds, one.requests, one.errors, one.latencies)), pairs)
    judged = judging.judge(judging.update(judging.start(shape), many))

    assert np.isinf(judged.breach).all()
    assert judged.breach.shape == judged.enough.shape == shape
