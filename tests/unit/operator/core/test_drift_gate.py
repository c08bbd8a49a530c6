"""The gate `drift`: what two revisions' counts prove, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fakes.cases import cases
from fakes.observed_models import FIRST, SECOND, candidate, group, holder, model, report, rollout_record, state, world
from segserve_builder.agent.protocol import MAX_HISTOGRAMS, AnswersReport
from segserve_operator.api.rollout_policy import DriftGate, RolloutPolicy
from segserve_operator.core.advance.case import RolloutCase
from segserve_operator.core.advance.verdicts import drift
from segserve_operator.core.advance.verdicts.drift import with_comparisons
from segserve_operator.core.drift.comparison import BLOCK_IMAGES, RevisionComparison
from segserve_operator.core.drift.detector import Histograms
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.gates.drift import judge
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import ModelObserved, Observed, Roles

LEVEL = 0.01


@dataclass
class Revision:
    """One server of a revision; its images have some brightness, a share of them a coin, of some area each."""

    seed: int
    coins: float = 0.8
    area: float = 0.3
    brightness: float = 0.5
    _counts: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def answer(self, images: int) -> Mapping[str, Histograms]:
        """Return the server's counts after so many more images."""
        random = self._random
        found = random.random(images) < self.coins
        self._add("brightness", np.histogram(random.normal(self.brightness, 0.15, images).clip(0, 0.99), 10, (0, 1))[0])
        self._add("emptyAnswers", np.array((found.sum(), (~found).sum())))
        self._add("classShare:coin", np.array(((~found).sum(), found.sum())))
        areas = random.normal(self.area, 0.1, int(found.sum())).clip(0, 0.99)
        self._add("area:coin", np.histogram(areas, 10, (0, 1))[0])
        return {"server": {name: tuple(map(float, counts)) for name, counts in self._counts.items()}}

    def restart(self) -> None:
        """Count from zero."""
        self._counts.clear()

    def _add(self, name: str, counts: np.ndarray) -> None:
        self._counts[name] = self._counts.get(name, np.zeros(len(counts))) + counts


def after(blocks: int, candidate: Revision, stable: Revision, images: tuple[int, int] = (25, 70)) -> RevisionComparison:
    comparison = RevisionComparison()
    # The first reports only begin the comparison.
    for _ in range(blocks + 2):
        comparison = comparison.with_reports(candidate.answer(images[0]), stable.answer(images[1]), 0.1)
    return comparison


def verdict(comparison: RevisionComparison, *, weight: int = 25, **spec: Any) -> Verdict:
    result = CheckResult("key", 0.0, answers=comparison, weight=weight)
    return judge(DriftGate.model_validate(spec), result, RolloutPolicy(), LEVEL)


@cases(
    ("candidate", "name"),
    {
        "a class that is rarer": (Revision(1, coins=0.2), "classShare of coin"),
        "more empty answers": (Revision(1, coins=0.2), "emptyAnswers"),
        "larger objects": (Revision(1, area=0.6), "area of coin"),
    },
)
def test_answers_of_another_distribution_are_found_and_named(candidate: Revision, name: str) -> None:
    found = verdict(after(80, candidate, Revision(2)), onBreach="Rollback")

    assert (found.outcome, found.reason) == (Outcome.BREACH, "AnswersDiffer")
    assert name in found.message


def test_answers_of_one_distribution_pass_once_a_large_difference_is_excluded() -> None:
    few, enough = (after(blocks, Revision(1), Revision(2)) for blocks in (5, 60))

    assert (verdict(few).outcome, verdict(few).reason) == (Outcome.UNDECIDED, "Uncertain")
    assert (verdict(enough).outcome, verdict(enough).reason) == (Outcome.PASS, "AnswersAlike")


def test_what_a_proof_does_is_for_the_policy_to_say() -> None:
    differs = after(80, Revision(1, coins=0.2), Revision(2))

    assert verdict(differs).outcome is Outcome.UNDECIDED
    assert "skip-gate" in verdict(differs).message
    assert verdict(differs, onBreach="Rollback").outcome is Outcome.BREACH
    noted = verdict(differs, onBreach="Note")
    assert (noted.outcome, noted.reason) == (Outcome.PASS, "AnswersDiffer")
    assert noted.message.endswith("noted only")


def test_a_gate_that_only_notes_never_holds_a_rollout() -> None:
    assert verdict(RevisionComparison(), onBreach="Note").outcome is Outcome.PASS


def test_nothing_follows_from_answers_where_images_differ() -> None:
    found = verdict(after(80, Revision(1, coins=0.2, brightness=0.85), Revision(2)), onBreach="Rollback")

    assert (found.outcome, found.reason) == (Outcome.UNDECIDED, "NotComparable")
    assert "brightness" in found.message


def test_a_difference_within_the_tolerance_is_none() -> None:
    differs = after(150, Revision(1, coins=0.75), Revision(2, coins=0.8), (60, 60))

    assert verdict(differs, onBreach="Rollback").reason == "AnswersAlike"


def test_before_the_first_step_the_gate_lets_the_rollout_begin() -> None:
    assert verdict(RevisionComparison(), weight=0).reason == "NoTraffic"
    assert verdict(RevisionComparison(), weight=5).outcome is Outcome.UNDECIDED
    assert verdict(after(80, Revision(1, coins=0.2), Revision(2)), weight=0, onBreach="Rollback").reason == (
        "AnswersDiffer"
    )


def test_a_block_lasts_until_both_revisions_had_enough_images() -> None:
    candidate, stable = Revision(1), Revision(2)
    comparison = after(0, candidate, stable)
    for images in (BLOCK_IMAGES // 2, BLOCK_IMAGES // 2 - 1, 1):
        comparison = comparison.with_reports(candidate.answer(images), stable.answer(50), 0.1)
        assert comparison.blocks == 0 or images == 1

    assert comparison.blocks == 1


def test_areas_wait_for_images_that_have_an_object() -> None:
    comparison = after(10, Revision(1, coins=0.1), Revision(2, coins=0.1), (25, 25))

    assert comparison.histograms["classShare:coin"].blocks == 10
    assert comparison.histograms["area:coin"].blocks <= 1


def test_what_servers_counted_before_and_what_was_lost_by_a_restart_is_no_evidence() -> None:
    candidate, stable = Revision(1), Revision(2)
    candidate.answer(500)
    comparison = after(0, candidate, stable)
    assert comparison.blocks == 0

    candidate.restart()
    comparison = comparison.with_reports(candidate.answer(5), stable.answer(7), 0.1)

    assert comparison.histograms["brightness"].pending.sum(1).tolist() == [5, 7]


def test_counts_in_other_buckets_and_too_many_names_are_left_out() -> None:
    def counts(at: int, buckets: int) -> Mapping[str, Histograms]:
        names = [f"area:{number}" for number in range(2 * MAX_HISTOGRAMS)]
        return {"server": {"brightness": (30.0 * at,) * buckets} | dict.fromkeys(names, (1.0 * at, 1.0 * at))}

    comparison = RevisionComparison()
    for at in range(1, 4):
        comparison = comparison.with_reports(counts(at, 4), counts(at, 5), 0.1)

    assert "brightness" not in comparison.compared(images=True)
    assert len(comparison.histograms) <= MAX_HISTOGRAMS


def test_equal_revisions_are_hardly_ever_taken_to_differ_however_often_one_looks() -> None:
    """Of 40 rollouts of equal revisions, looked at after each block, 1 % may breach: of this seed none does."""
    breaches = 0
    for run in range(40):
        candidate, stable, comparison = Revision(2 * run), Revision(2 * run + 1), RevisionComparison()
        for _ in range(32):
            comparison = comparison.with_reports(candidate.answer(20), stable.answer(20), 0.0)
            if verdict(comparison, onBreach="Rollback", tolerance=0.0).outcome is Outcome.BREACH:
                breaches += 1
                break

    assert breaches == 0


def test_equal_revisions_are_alike_where_few_images_have_most_objects() -> None:
    """One of 33 images has 200 small objects, each other one a large one; the candidate has 5 % of requests."""
    reasons = []
    for run in range(4):
        random, comparison, totals = np.random.default_rng(run), RevisionComparison(), [np.zeros((2, 3)) for _ in "cs"]
        for _ in range(400):
            crowded, is_candidate = random.random(100) < 1 / 33, random.random(100) < 0.05
            for total, chosen in zip(totals, (is_candidate, ~is_candidate), strict=True):
                few = (crowded & chosen).sum()
                total += ((few, chosen.sum() - few, 0), (200 * few, chosen.sum() - few, 0))
            own, stable = (
                {"server": {"area:coin": tuple(areas.tolist()), "score:coin": tuple(scores.tolist())}}
                for areas, scores in totals
            )
            comparison = comparison.with_reports(own, stable, 0.1)
        reasons.append(verdict(comparison, weight=5, onBreach="Rollback").reason)

    assert reasons == ["AnswersAlike"] * 4


def test_a_block_has_no_images_of_a_time_when_only_one_revision_answers() -> None:
    candidate, night, day = Revision(1, coins=0.9), Revision(2, coins=0.1), Revision(3, coins=0.9)
    comparison = RevisionComparison().with_reports({"server": {}}, night.answer(100), 0.1)
    comparison = comparison.with_reports({"server": {}}, night.answer(1000), 0.1)
    comparison = comparison.with_reports(candidate.answer(10), day.answer(100), 0.1)
    for _ in range(40):
        comparison = comparison.with_reports(candidate.answer(25), day.answer(100), 0.1)

    found = verdict(comparison)

    assert found.reason == "AnswersAlike"
    assert comparison.histograms["emptyAnswers"].difference < 0.05


def test_an_interruption_gives_up_open_blocks_and_keeps_closed_ones() -> None:
    candidate, stable = Revision(1), Revision(2)
    comparison = after(3, candidate, stable).with_reports(candidate.answer(5), stable.answer(500), 0.1)

    interrupted = comparison.interrupted(candidate.answer(300), stable.answer(300))

    assert interrupted.blocks == comparison.blocks == 3
    assert not any(each.pending.any() for each in interrupted.histograms.values())
    once_more = interrupted.with_reports(candidate.answer(30), stable.answer(30), 0.1)
    assert once_more.blocks == 3
    assert once_more.with_reports(candidate.answer(30), stable.answer(30), 0.1).blocks == 4


def test_servers_that_are_gone_are_forgotten_and_equal_reports_change_nothing() -> None:
    candidate, stable = Revision(1), Revision(2)
    comparison = after(3, candidate, stable)

    renamed = comparison.with_reports({"another": candidate.answer(10)["server"]}, stable.answer(10), 0.1)

    assert renamed.seen[0].keys() == {"another"}
    assert renamed.with_reports(*renamed.seen, 0.1) is renamed


def test_the_message_has_the_numbers_that_decide() -> None:
    comparison = after(80, Revision(1, coins=0.2), Revision(2))

    found = verdict(comparison)

    shares = comparison.histograms["emptyAnswers"].shares[:, 0] / comparison.blocks
    assert f"emptyAnswers {100 - 100 * shares[0]:.3g} %, stable {100 - 100 * shares[1]:.3g} %" in found.message
    assert found.numbers["difference"] == pytest.approx(shares[1] - shares[0], abs=0.02)


POLICY = RolloutPolicy(gates=(DriftGate(),))
HELD = Verdict("drift", Outcome.UNDECIDED, "AnswersDiffer", "a proof")


def rolling_out(phase: Phase) -> tuple[RolloutState, ModelObserved]:
    at = state(SECOND, phase)
    return at, model(SECOND, Roles(holder(FIRST, "main"), candidate(SECOND)), policy=POLICY, rollout=at)


def counting(phase: Phase, before: Observed | None, own: Revision, stable: Revision) -> Observed:
    """Return the world of a rollout after fifty more images of both revisions."""
    at, coins = rolling_out(phase)
    groups = [
        group(name, held, reports=[report(held, answers=AnswersReport(histograms=revision.answer(50)["server"]))])
        for name, held, revision in (("main", FIRST, stable), (SECOND.revision, SECOND, own))
    ]
    record = rollout_record(at, policy=POLICY)
    comparisons = before.comparisons if before is not None else {}
    now = world(coins, groups=groups)
    return with_comparisons(replace(now, records={**now.records, record.name: record}, comparisons=comparisons))


def test_only_answers_to_split_requests_are_compared() -> None:
    own, stable = Revision(1), Revision(2)
    now, blocks = counting(Phase.SHADOW, None, own, stable), []
    for phase in (Phase.SHADOW, Phase.PROGRESSING, Phase.QUARANTINED, Phase.PROGRESSING):
        for _ in range(4):
            now = counting(phase, now, own, stable)
        blocks.append(next(iter(now.comparisons.values())).blocks)

    assert blocks == [0, 3, 3, 6]


@cases(
    ("former", "reason"),
    {
        "a proof that holds stays one": ((HELD,), "AnswersDiffer"),
        "anything else is judged anew": ((replace(HELD, reason="Uncertain"),), "Uncertain"),
    },
)
def test_after_a_restart_which_begins_anew(former: tuple[Verdict, ...], reason: str) -> None:
    at, coins = rolling_out(Phase.PROGRESSING)
    own, stable = Revision(1), Revision(2)
    now = counting(Phase.PROGRESSING, None, own, stable)
    for _ in range(3):
        now = counting(Phase.PROGRESSING, now, own, stable)

    (found,) = drift.SOURCE.verdicts(
        RolloutCase(rollout_record(at, *former, policy=POLICY), at, coins.roles, coins, now)
    )

    assert found.reason == reason
