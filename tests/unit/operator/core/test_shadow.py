"""Shadow in the engine, in the plan, in sizes and in a forecast: what it waits for, and what it leads to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from fakes.cases import cases
from fakes.judgements import judgement
from fakes.observed_models import FIRST, SECOND, candidate, decided, group, holder, model, rollout_record, state, world
from segserve_builder.steps.pipeline import PostprocessStep
from segserve_operator.api.rollout_policy import ErrorRateGate, MaskAgreementGate, RolloutPolicy, Shadow, Slo
from segserve_operator.core.advance.advance import advance
from segserve_operator.core.advance.sizes import sizes
from segserve_operator.core.evidence import EvidenceWindow, Judgement, Pairs
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.rollout.engine import (
    WAITS,
    OnUndecided,
    Policy,
    Progress,
    ShadowPolicy,
    Signals,
    Step,
    Wait,
    next_transition,
    watch,
)
from segserve_operator.core.rollout.forecast import forecast
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.policy import engine_policy
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.traffic import Mirror
from segserve_operator.core.world.observed import GroupObserved, Observed, PoolGateway, PoolObserved, Roles

POLICY = Policy(levels=(0.01,), tolerances=(0.005,), shadow=ShadowPolicy(min_requests=200, maximum_s=600))
FINE = judgement()
UNPROVED = replace(FINE, harm=np.array(0.5))
DOUBTFUL = replace(UNPROVED, doubtful=np.array(True))
BAD = replace(DOUBTFUL, breach=np.array(9.0))


def progress(phase: Phase = Phase.SHADOW, *, seen: float = 200.0, rate: float = 0.0) -> Progress:
    """Return a rollout whose phase began at 1000 s."""
    return replace(Progress.begun(1000.0), phase=np.array(phase, np.int8), seen=np.array(seen), rate=np.array(rate))


def after(start: Progress, judged: Judgement = FINE, now_s: float = 1100.0, policy: Policy = POLICY, **heard: object):
    moved = next_transition(policy, start, (judged,), Signals(**heard), now_s)
    return Phase(int(moved.progress.phase)), Signal(int(moved.signal)), int(moved.progress.step), float(moved.weight)


def wait(start: Progress, judged: Judgement = FINE, now_s: float = 1100.0, **heard: object) -> Wait:
    return WAITS[int(next_transition(POLICY, start, (judged,), Signals(**heard), now_s).waits_for)]


def test_shadow_follows_the_golden_images_where_the_policy_has_one() -> None:
    golden = progress(Phase.GOLDEN)

    assert after(golden) == (Phase.SHADOW, Signal.SHADOW_BEGINS, -1, 0.0)
    assert after(golden, policy=replace(POLICY, shadow=None)) == (Phase.PROGRESSING, Signal.GOLDEN_PASSED, 0, 5.0)
    assert after(golden, golden=0)[0] is Phase.GOLDEN


def test_enough_copies_without_harm_end_it_and_nothing_less_does() -> None:
    assert after(progress()) == (Phase.PROGRESSING, Signal.SHADOW_PASSED, 0, 5.0)
    for start, judged, reason in (
        (progress(seen=199), FINE, Wait.DATA),
        (progress(), replace(FINE, enough=np.array(False)), Wait.DATA),
        (progress(), UNPROVED, Wait.HARM),
        (progress(), replace(FINE, shared=np.array(True)), Wait.INCIDENT),
    ):
        assert after(start, judged) == (Phase.SHADOW, Signal.NONE, -1, 0.0)
        assert wait(start, judged) is reason


def test_after_its_longest_time_the_steps_begin_with_the_first_unless_it_is_probably_worse() -> None:
    assert after(progress(seen=0), UNPROVED, 1599.0)[0] is Phase.SHADOW
    assert after(progress(seen=0), UNPROVED, 1600.0) == (Phase.PROGRESSING, Signal.SHADOW_OVER, 0, 5.0)
    assert after(progress(seen=9, rate=0.01), UNPROVED, 1600.0) == (Phase.PROGRESSING, Signal.SHADOW_OVER, 0, 5.0)
    assert after(progress(), DOUBTFUL, 5000.0)[0] is Phase.SHADOW
    assert wait(progress(), DOUBTFUL, 5000.0) is Wait.HARM


@pytest.mark.parametrize(
    ("on_undecided", "phase"),
    [(OnUndecided.HOLD, Phase.SHADOW), (OnUndecided.ROLLBACK, Phase.ROLLED_BACK), (OnUndecided.PROMOTE, Phase.BAKING)],
)
def test_what_is_probably_worse_ends_at_the_deadline_as_the_policy_says(
    on_undecided: OnUndecided, phase: Phase
) -> None:
    policy = replace(POLICY, on_undecided=on_undecided, deadline_s=3600.0)

    assert after(progress(), DOUBTFUL, 5000.0, policy)[0] is phase


def test_proof_against_it_rolls_back_and_failures_are_no_reason_for_a_quarantine() -> None:
    failing = replace(progress(seen=20), failures=np.array(20.0), stable_answered_s=np.array(1099.0))

    assert after(progress(), BAD) == (Phase.ROLLED_BACK, Signal.BREACH, -1, 0.0)
    assert after(failing, replace(DOUBTFUL, breach=np.array(4.0)))[:2] == (Phase.SHADOW, Signal.NONE)


def test_failures_of_copies_are_not_counted_any_more_among_callers() -> None:
    start = replace(progress(), failures=np.array(20.0), stable_answered_s=np.array(1099.0))
    moved = next_transition(POLICY, start, (FINE,), Signals(), 1100.0).progress

    assert (float(moved.failures), float(moved.seen), float(moved.step_since_s)) == (0.0, 0.0, 1100.0)


@cases(
    ("rate", "step"),
    {
        "2 copies a second are less than 5 % of 50 requests": (50.0, 0),
        "2 copies a second are 5 % of 40 requests": (40.0, 1),
        "2 copies a second are 25 % of 8 requests": (8.0, 2),
        "the last step is never left out": (2.0, 2),
        "callers' rate is not known": (0.0, 0),
    },
)
def test_steps_are_left_out_whose_rate_of_requests_it_has_had(rate: float, step: int) -> None:
    assert after(progress(rate=rate))[2] == step


def test_a_step_is_not_left_out_if_it_lasts_or_asks_a_person_or_if_time_sets_the_pace() -> None:
    for first in (Step(5, ask=True), Step(5, minimum_s=60)):
        policy = replace(POLICY, steps=(first, Step(25), Step(50)))
        assert after(progress(rate=2.0), policy=policy)[2] == 0
    by_time = engine_policy(RolloutPolicy(pace="steps", shadow=Shadow()))
    by_evidence = engine_policy(RolloutPolicy(shadow=Shadow(max_duration=timedelta(minutes=3), min_requests=50)))

    assert not by_time.shadow.skips_steps
    assert by_evidence.shadow == ShadowPolicy(min_requests=50.0, maximum_s=180.0, skips_steps=True)
    assert after(progress(rate=2.0), policy=replace(POLICY, shadow=ShadowPolicy(skips_steps=False)))[2] == 0


def test_a_window_of_pairs_counts_copies_and_callers_apart() -> None:
    pairs = replace(Pairs.nothing(), callers=np.array(600.0))
    window = EvidenceWindow(np.array(1e6), np.full(2, 7.0), np.zeros(2), np.zeros((2, 4)), pairs)
    seen = watch(progress(seen=5), replace(window, seconds=np.array(60.0)), 1100.0)
    long = watch(progress(), replace(window, pairs=replace(pairs, callers=np.array(1e7))), 1100.0)

    assert float(seen.seen) == 12.0
    assert float(long.rate) == pytest.approx(10.0)


CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
GROUPS = [group("main", FIRST), group(SECOND.revision, SECOND)]
COPIED = RolloutPolicy(shadow=Shadow(percent=20, max_requests_per_second=3))


def seen(phase: Phase, groups: list[GroupObserved] = GROUPS, **changes: Any) -> Observed:
    """Return a world in which the second revision's rollout is in this phase."""
    rollout = state(SECOND, phase, **changes)
    coins = model(SECOND, CHANGING, rollout=rollout, policy=COPIED)
    record = replace(rollout_record(rollout, policy=COPIED), progress=progress(phase, rate=40.0), sequence=1)
    found = world(coins, groups=groups, pool=PoolObserved(replicas=4), now_s=1100.0)
    return replace(found, records={record.name: record})


def mirror(at: Observed) -> Mirror | None:
    traffic = desired_state(at).traffic
    return traffic.routes[0].mirror


def test_requests_are_copied_in_shadow_alone() -> None:
    assert mirror(seen(Phase.SHADOW)) == Mirror("main", SECOND.revision, 20, 3.0)
    for phase in (Phase.PROGRESSING, Phase.QUARANTINED):
        assert mirror(seen(phase)) is None


def test_nothing_is_copied_while_a_person_pauses_it_or_one_of_both_does_not_answer() -> None:
    assert mirror(seen(Phase.SHADOW, paused=True)) is None
    assert mirror(seen(Phase.SHADOW, groups=[group("main", FIRST), group(SECOND.revision, servers=0)])) is None
    assert mirror(seen(Phase.SHADOW, groups=[group("main", FIRST)])) is None


def rolled_back(reason: str) -> Observed:
    """Return a world in which the second revision was rolled back, and the first one is wanted again."""
    rollout = state(SECOND, Phase.ROLLED_BACK, reason=reason)
    coins = model(FIRST, Roles(CHANGING.stable), rollout=rollout, policy=COPIED)
    return replace(seen(Phase.SHADOW), models=(coins,))


def keeps_pairs(at: Observed) -> bool:
    traffic = desired_state(at).traffic
    return traffic.routes[0].keeps_pairs is True


def test_what_was_compared_may_be_kept_after_shadow_but_not_after_an_abort_nor_into_the_next_rollout() -> None:
    for phase in (Phase.SHADOW, Phase.PROGRESSING, Phase.QUARANTINED):
        assert keeps_pairs(seen(phase)), phase
    assert keeps_pairs(seen(Phase.SHADOW, paused=True))
    assert keeps_pairs(rolled_back("MasksDiffer"))
    assert not keeps_pairs(rolled_back("Aborted"))
    assert not keeps_pairs(seen(Phase.PENDING))
    assert not keeps_pairs(
        replace(seen(Phase.PROGRESSING), pool=PoolObserved(replicas=4, gateway=PoolGateway(shadow=False)))
    )


def test_in_shadow_a_candidate_gets_the_servers_for_the_step_that_follows() -> None:
    at = seen(Phase.SHADOW)
    record = next(iter(at.records.values()))
    rollout, roles = {"coins": at.models[0].status.rollout}, {"coins": CHANGING}
    covered = replace(at, records={record.name: replace(record, progress=progress(rate=8.0))})

    assert sizes(roles, rollout, at) == {SECOND.revision: 1}  # of four, for 25 % of 40 requests
    assert sizes(roles, rollout, covered) == {SECOND.revision: 2}  # for 50 % of 8, as it had 2 a second


def test_a_model_that_keeps_streams_has_no_shadow_since_a_copy_would_be_one_more_frame() -> None:
    steps = ({"argmax": {}}, {"temporalSmoothing": {"method": "votes"}})
    votes = tuple(map(PostprocessStep.model_validate, steps))
    told = SECOND.model_copy(update={"pipeline": SECOND.pipeline.model_copy(update={"postprocess": votes})})
    policy = COPIED.model_copy(update={"gates": (ErrorRateGate(), MaskAgreementGate())})
    coins = model(told, CHANGING, rollout=state(told, Phase.PENDING), policy=policy)
    (record,) = decided(advance(coins, CHANGING, world(coins, groups=GROUPS, now_s=1100.0))).records

    assert record.policy.shadow is None
    # What is written must be what may be read: gates that judge pairs alone need Shadow.
    assert [gate.gate for gate in RolloutPolicy.model_validate(record.policy.model_dump()).gates] == ["errorRate"]


def test_the_forecast_of_shadow_is_its_longest_time_and_the_copies_that_are_missing() -> None:
    def found(copies: float, now_s: float = 1100.0) -> tuple[float, float]:
        record = Record("coins-1", "coins", "old", "new", COPIED, Slo(), progress(seen=copies))
        outlook = forecast(record, (), now_s)
        return outlook.next_s, outlook.next_requests

    assert found(50) == (500.0, 150.0)
    assert found(250) == (500.0, 0.0)
    assert found(250, 1700.0)[0] == np.inf


def test_the_forecast_of_masks_that_a_person_has_to_look_at_is_that_person_and_no_time() -> None:
    policy = COPIED.model_copy(update={"gates": (MaskAgreementGate(),)})
    gate = measured_gates(policy, Slo())["maskAgreement"]
    pairs = Pairs.nothing()
    differ = replace(pairs, failed=pairs.failed + np.diag([40.0, 0.0]), disagreements=pairs.disagreements.copy())
    differ.disagreements[-1] = 40.0
    window = replace(EvidenceWindow.nothing(), pairs=differ)
    states = {"maskAgreement": gate.update(gate.start(), window)}
    record = Record("coins-1", "coins", "old", "new", policy, Slo(), progress(seen=40.0), gates=states)
    outlook = forecast(record, (), 1100.0)

    assert (outlook.wait, outlook.next_s) == (Wait.PERSON, np.inf)
    assert forecast(record, ("maskAgreement",), 1100.0).wait is Wait.DATA
