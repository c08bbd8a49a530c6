"""The engine: what follows from judgements, for one rollout and for many at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fakes.judgements import judgement
from segserve_operator.core.evidence import EvidenceWindow, Judgement
from segserve_operator.core.rollout.engine import (
    Policy,
    Progress,
    ShadowPolicy,
    Signals,
    next_transition,
    watch,
    weights,
)
from segserve_operator.core.rollout.phases import Phase, Signal

POLICY = Policy(levels=(0.01,), tolerances=(0.005,), bake_s=60.0)
FINE = judgement()
BAD = replace(FINE, breach=np.array(9.0), harm=np.array(0.5), excess=np.array(20.0))


def progress(phase: Phase = Phase.PROGRESSING, step: int = 0, **changed: float) -> Progress:
    found = replace(Progress.begun(1000.0), phase=np.array(phase, np.int8), step=np.array(step, np.int8))
    known = {"seen": 50.0, "rate": 10.0, "stable_answered_s": 1000.0} | changed
    return replace(found, **{name: np.array(value) for name, value in known.items()})


def window(requests: tuple[float, float], errors: tuple[float, float], seconds: float = 1.0) -> EvidenceWindow:
    return EvidenceWindow(np.array(seconds), np.array(requests), np.array(errors), np.zeros((2, 4)))


def after(start: Progress, *judged: Judgement, now_s: float = 1010.0, policy: Policy = POLICY, **heard: object):
    transition = next_transition(policy, start, judged or (FINE,), Signals(**heard), now_s)
    return Phase(int(transition.progress.phase)), Signal(int(transition.signal)), float(transition.weight)


def test_each_gate_has_a_tolerance_of_its_own() -> None:
    policy = replace(POLICY, levels=(0.01, 0.01), tolerances=(0.005, 0.03))
    busy, slow = progress(rate=1e6), replace(FINE, harm=np.array(0.02))
    assert after(busy, FINE, slow, policy=policy)[1] is Signal.ADVANCE
    assert after(busy, slow, FINE, policy=policy)[1] is Signal.NONE


def test_three_failures_in_a_row_while_stable_answers_quarantine_at_once() -> None:
    seen = progress(failures=0.0)
    for _ in range(3):
        seen = watch(seen, window((9, 1), (0, 1)), 1009.0)

    assert after(seen) == (Phase.QUARANTINED, Signal.QUARANTINE, 0.0)


def test_failures_are_not_in_a_row_where_an_answer_came_between_or_may_have() -> None:
    mixed = watch(progress(failures=2.0), window((9, 2), (0, 1)), 1009.0)
    answered = watch(progress(failures=2.0), window((9, 1), (0, 0)), 1009.0)

    assert float(mixed.failures) == float(answered.failures) == 0.0


def test_few_requests_do_not_make_a_harmful_revision_affordable() -> None:
    slow = progress(step=2, rate=0.01)

    assert after(slow, replace(FINE, harm=np.array(0.2)))[1] is Signal.NONE
    assert after(slow, replace(FINE, harm=np.array(0.04)))[1] is Signal.CERTIFIED


def test_a_sudden_excess_of_failures_quarantines_whoever_serves_callers_unless_stable_fails_too() -> None:
    surging = judgement(surging=True)
    assert after(progress(), surging) == (Phase.QUARANTINED, Signal.QUARANTINE, 0.0)
    assert after(progress(Phase.BAKING, 2), surging) == (Phase.QUARANTINED, Signal.QUARANTINE, 0.0)
    assert after(progress(), judgement(surging=True, incident=True))[1] is not Signal.QUARANTINE
    shadowed = after(progress(Phase.SHADOW, -1), surging, policy=replace(POLICY, shadow=ShadowPolicy()))
    assert shadowed[0] is Phase.SHADOW


def test_weights_follow_from_phase_and_step_alone() -> None:
    phases = np.array([Phase.GOLDEN, Phase.PROGRESSING, Phase.QUARANTINED, Phase.BAKING, Phase.ROLLED_BACK], np.int8)

    assert weights(POLICY, phases, np.array([-1, 1, 1, 2, 2], np.int8)).tolist() == [0, 25, 0, 95, 0]


def test_what_is_against_a_cold_candidate_stops_it_and_proves_nothing_until_it_had_its_time() -> None:
    cold = replace(BAD, harm=np.array(0.001), excess=np.array(0.0), settling=np.array(True))
    warm = replace(cold, settling=np.array(False))

    assert after(progress(), cold) == (Phase.QUARANTINED, Signal.QUARANTINE, 0.0)
    assert after(progress(Phase.BAKING, 2), cold) == (Phase.QUARANTINED, Signal.QUARANTINE, 0.0)
    assert after(progress(Phase.QUARANTINED), cold, probes=1) == (Phase.QUARANTINED, Signal.NONE, 0.0)
    assert after(progress(Phase.QUARANTINED), replace(FINE, settling=np.array(True)), probes=1)[1] is Signal.NONE
    assert after(progress(Phase.QUARANTINED), FINE, probes=1)[1] is Signal.RESUMED
    assert after(progress(), warm) == (Phase.ROLLED_BACK, Signal.BREACH, 0.0)


def test_no_budget_is_risked_for_a_candidate_that_is_probably_worse() -> None:
    affordable = replace(FINE, harm=np.array(0.01))
    doubtful = replace(affordable, doubtful=np.array(True))

    assert after(progress(), affordable)[1] is Signal.ADVANCE
    assert after(progress(), doubtful)[1] is Signal.NONE
    assert after(progress(), replace(doubtful, harm=np.array(1e-4)))[1] is Signal.ADVANCE
