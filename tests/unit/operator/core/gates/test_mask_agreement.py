"""The gate `maskAgreement`: evidence of pairs of answers, and what its verdict says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segserve_operator.core.evidence import DISAGREEMENTS, SHIFTS, EvidenceWindow, Pairs
from segserve_operator.core.gates.base import OnBreach, Outcome
from segserve_operator.core.gates.mask_agreement import AgreementState, MaskAgreement

GATE = MaskAgreement(minimum=0.9)
LEVEL = 0.0025
BINS = len(DISAGREEMENTS) + 1


def window(*disagreements: float, answered: int | None = None) -> EvidenceWindow:
    pairs = Pairs.nothing()
    counts = np.bincount(np.searchsorted(DISAGREEMENTS, disagreements, side="right"), minlength=BINS).astype(float)
    failed = np.array([[float(len(disagreements) if answered is None else answered), 0.0], [0.0, 0.0]])
    return replace(EvidenceWindow.nothing(), pairs=replace(pairs, failed=failed, disagreements=counts))


def seen(*windows: EvidenceWindow, gate: MaskAgreement = GATE) -> AgreementState:
    state = gate.start()
    for each in windows:
        state = gate.update(state, each)
    return state


def proves(state: AgreementState, gate: MaskAgreement = GATE) -> bool:
    return bool(gate.judge(state).breach >= -np.log(LEVEL))


def test_masks_that_differ_by_a_third_are_proved_to_within_forty_pairs() -> None:
    assert proves(seen(*[window(0.33)] * 40))


def test_masks_that_differ_by_a_hundredth_pass_after_two_hundred_pairs() -> None:
    state = seen(*[window(0.01, 0.012)] * 100)
    assert not proves(state)
    assert GATE.explain(state, LEVEL).outcome is Outcome.PASS


def test_one_image_in_a_hundred_that_is_answered_quite_differently_is_tolerated() -> None:
    assert not proves(seen(*[window(*[0.0] * 99, 1.0)] * 20))


def test_one_image_in_four_that_is_answered_quite_differently_is_found() -> None:
    assert proves(seen(*[window(0.0, 0.0, 0.0, 1.0)] * 50))


def test_a_pair_counts_as_the_least_that_its_bin_holds() -> None:
    at_the_limit = seen(*[window(0.149)] * 1000)
    assert not proves(at_the_limit), "the bin of 0.1 to 0.15 leaves a mean disagreement of 0.1 possible"


def test_healthy_candidates_at_the_limit_are_accused_as_rarely_as_declared() -> None:
    level, runs = 0.05, 1000
    generator = np.random.default_rng(2)
    state, most = GATE.start((runs,)), np.zeros(runs)
    for _ in range(40):
        differs = generator.binomial(5, 0.1 / 0.95, runs)
        counts = np.zeros((runs, BINS))
        counts[:, 0], counts[:, -1] = 5 - differs, differs
        pairs = replace(Pairs.nothing((runs,)), disagreements=counts)
        state = GATE.update(state, replace(EvidenceWindow.nothing((runs,)), pairs=pairs))
        most = np.maximum(most, GATE.judge(state).breach)
    assert (most >= -np.log(level)).mean() <= level


def test_without_pairs_it_is_undecided_and_holds_nothing_up() -> None:
    state = seen(EvidenceWindow.nothing())
    judged, verdict = GATE.judge(state), GATE.explain(state, LEVEL)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "NoData")
    assert judged.enough
    assert judged.breach == pytest.approx(0.0)
    assert judged.harm == judged.excess == 0


def test_pairs_of_which_none_can_be_compared_are_said_to_be_so() -> None:
    verdict = GATE.explain(seen(window(answered=50)), LEVEL)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "NotComparable")
    assert "none of 50 pairs could be compared" in verdict.message


def test_while_half_of_few_pairs_are_not_compared_there_is_too_little_evidence() -> None:
    waits = [not GATE.judge(seen(window(answered=8), *[window(0.0)] * count)).enough for count in (0, 7, 8)]
    assert waits == [True, True, False]
    assert GATE.judge(seen(window(answered=5000), *[window(0.0)] * 20)).enough
    assert GATE.judge(GATE.after_shadow(seen(window(answered=50)))).enough


@pytest.mark.parametrize(
    ("on_breach", "outcome", "word"),
    [
        (OnBreach.HOLD, Outcome.UNDECIDED, "segserve rollout sheet"),
        (OnBreach.ROLLBACK, Outcome.BREACH, "masks agree by at most 0.800"),
        (OnBreach.NOTE, Outcome.UNDECIDED, "noted only"),
    ],
)
def test_only_a_proof_that_rolls_back_is_a_breach(on_breach: OnBreach, outcome: Outcome, word: str) -> None:
    gate = MaskAgreement(0.9, on_breach)
    verdict = gate.explain(seen(*[window(0.2)] * 100, gate=gate), LEVEL)
    assert (verdict.outcome, verdict.reason) == (outcome, "MasksDiffer")
    assert word in verdict.message


def test_what_shadow_proved_is_kept_and_callers_requests_change_nothing() -> None:
    state = GATE.after_shadow(seen(*[window(0.5)] * 40))
    after = GATE.update(state, replace(EvidenceWindow.nothing(), requests=np.array([100.0, 100.0])))
    assert proves(after)
    assert GATE.explain(after, LEVEL) == GATE.explain(state, LEVEL)


def test_a_rollout_that_begins_again_has_no_pairs() -> None:
    assert not GATE.again(seen(window(0.5))).disagreements.any()


LEARNT = MaskAgreement(minimum=None)


def twice(*disagreements: float) -> EvidenceWindow:
    """Return two answers of stable to each of some requests, that differ so much."""
    counts = np.bincount(np.searchsorted(DISAGREEMENTS, disagreements, side="right"), minlength=BINS).astype(float)
    return replace(EvidenceWindow.nothing(), pairs=replace(Pairs.nothing(), baseline=counts))


def test_a_stable_that_differs_from_itself_is_the_measure_of_its_candidate() -> None:
    noisy = seen(*[twice(0.15, 0.25)] * 50, *[window(0.2, 0.25)] * 200, gate=LEARNT)

    assert not proves(noisy, LEARNT)
    assert proves(seen(*[window(0.2, 0.25)] * 200)), "a minimum of 0.9 would hold it"
    assert "stable agrees with itself by 0.825 in 100" in LEARNT.explain(noisy, LEVEL).message


def test_beyond_what_stable_differs_from_itself_a_candidate_is_held() -> None:
    state = seen(*[twice(0.0005)] * 100, *[window(0.36)] * 200, gate=LEARNT)

    assert proves(state, LEARNT)
    assert LEARNT.explain(state, LEVEL).numbers["minimum"] == pytest.approx(0.9)


def test_as_long_as_stable_was_not_asked_twice_it_is_taken_to_agree_with_itself() -> None:
    windows = [window(0.33)] * 40

    assert LEARNT.judge(seen(*windows, gate=LEARNT)).breach == pytest.approx(float(GATE.judge(seen(*windows)).breach))


def test_few_answers_of_stable_prove_less_than_many() -> None:
    few, many = (seen(*[twice(0.0)] * count, *[window(0.33)] * 60, gate=LEARNT) for count in (5, 200))

    assert float(LEARNT.judge(few).breach) < float(LEARNT.judge(many).breach)


def test_healthy_candidates_of_a_noisy_stable_are_accused_as_rarely_as_declared() -> None:
    level, runs = 0.05, 500
    generator = np.random.default_rng(3)
    state, most = LEARNT.start((runs,)), np.zeros(runs)
    for _ in range(30):
        counts = []
        for mean in (0.1, 0.2):  # the candidate differs by the tolerance more
            differs = generator.binomial(5, mean / 0.95, runs)
            each = np.zeros((runs, BINS))
            each[:, 0], each[:, -1] = 5 - differs, differs
            counts.append(each)
        pairs = replace(Pairs.nothing((runs,)), baseline=counts[0], disagreements=counts[1])
        state = LEARNT.update(state, replace(EvidenceWindow.nothing((runs,)), pairs=pairs))
        most = np.maximum(most, LEARNT.judge(state).breach)
    assert (most >= -np.log(level)).mean() <= level


CONFIDENT = MaskAgreement(minimum=0.9, max_shift=0.1)


def shifted(*shifts: float, disagreement: float = 0.0) -> EvidenceWindow:
    counts = np.bincount(np.searchsorted(SHIFTS, shifts, side="right"), minlength=len(SHIFTS) + 1).astype(float)
    same = window(*[disagreement] * len(shifts))
    assert same.pairs is not None
    return replace(same, pairs=replace(same.pairs, shifts=counts))


@pytest.mark.parametrize(("shift", "towards"), [(0.4, "0.300 higher"), (-0.4, "0.300 lower")])
def test_scores_that_shift_by_more_than_is_allowed_are_found_in_both_directions(shift: float, towards: str) -> None:
    state = seen(*[shifted(shift, shift)] * 50, gate=CONFIDENT)
    verdict = CONFIDENT.explain(state, LEVEL)

    assert proves(state, CONFIDENT)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "ConfidenceShifted")
    assert f"its scores are {towards} than stable's on average (0.1 is allowed)" in verdict.message


def test_scores_that_shift_here_up_and_there_down_have_not_shifted() -> None:
    assert not proves(seen(*[shifted(0.25, -0.25, 0.04)] * 100, gate=CONFIDENT), CONFIDENT)


def test_masks_that_differ_are_found_beside_scores_that_do_not_shift() -> None:
    state = seen(*[shifted(0.0, 0.0, disagreement=0.33)] * 50, gate=CONFIDENT)

    assert CONFIDENT.explain(state, LEVEL).reason == "MasksDiffer"
