"""Who is asked to score a golden set, and what a rollout makes of the servers' scores."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from fakes.cases import cases
from fakes.golden_scores import score_report
from fakes.observed_models import (
    FIRST,
    NOW_S,
    SECOND,
    THIRD,
    candidate,
    group,
    holder,
    model,
    report,
    rollout_record,
    server,
    state,
    world,
)
from segserve_builder.agent.protocol import (
    AssignedModel,
    Assignment,
    GoldenScoring,
    ModelReport,
    ProofReport,
    ScoreReport,
    pack_slices,
)
from segserve_builder.spec.model_spec import Golden
from segserve_operator.api.rollout_policy import ErrorRateGate, GoldenQualityGate, RolloutPolicy
from segserve_operator.core.advance.case import RolloutCase
from segserve_operator.core.advance.inputs import gather_signals, verdicts_with
from segserve_operator.core.advance.verdicts.golden import UNAVAILABLE, with_scoring
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.world.observed import GroupObserved, Roles

SHA = "a" * 64
SET = Golden(uri="s3://private/golden", sha256=SHA)
LABELLED = SECOND.model_copy(update={"golden": SET})
POLICY = RolloutPolicy(gates=(ErrorRateGate(), GoldenQualityGate(interval=timedelta(minutes=5))))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
PROMOTED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
GOLDEN, PROGRESSING, BAKING = (state(SECOND, phase) for phase in (Phase.GOLDEN, Phase.PROGRESSING, Phase.BAKING))
GOOD = score_report(SHA, [0.9] * 40)
PROVED = ProofReport(golden_sha256=SHA)


def record(*verdicts: Verdict, policy: RolloutPolicy = POLICY) -> Record:
    return rollout_record(GOLDEN, *verdicts, policy=policy)


def said(told: AssignedModel, scores: ScoreReport | None, proved: ProofReport | None = PROVED) -> ModelReport:
    return report(told, proved=proved, scores=scores)


def pair(stable: Any = GOOD, own: Any = GOOD, **changes: Any) -> tuple[GroupObserved, GroupObserved]:
    """Return both groups with one server each, and the scores that their agents report."""
    both = (
        (group("main", FIRST, reports=[said(FIRST, stable)])),
        group(SECOND.revision, SECOND, reports=[said(SECOND, own)]),
    )
    return both[0], replace(both[1], **changes)


def seen(
    at: RolloutState = GOLDEN,
    *,
    known: Record | None = None,
    groups: tuple[GroupObserved, ...] = (),
    wanted: AssignedModel = LABELLED,
    roles: Roles = CHANGING,
    **changes: Any,
) -> RolloutCase:
    known = known or record()
    coins = model(wanted, roles, policy=known.policy, rollout=at)
    observed = world(coins, groups=groups or pair(), records=(FIRST, LABELLED), **changes)
    return RolloutCase(known, at, roles, coins, observed)


def verdict(case: RolloutCase) -> Verdict | None:
    return next((each for each in verdicts_with(case) if each.gate == "goldenQuality"), None)


def asked(told: AssignedModel, name: str, at: RolloutState = GOLDEN, **changes: Any) -> GoldenScoring | None:
    case = seen(at, **changes)
    observed = replace(case.world, records={case.record.name: case.record})
    return with_scoring(told, name, case.model, observed).scoring


# Who is asked


@pytest.mark.parametrize("at", [GOLDEN, PROGRESSING, BAKING, state(SECOND, Phase.PENDING)])
def test_both_revisions_are_asked_for_the_set_of_the_spec_at_the_gates_interval(at: RolloutState) -> None:
    expected = GoldenScoring(golden=SET, interval_s=300.0)

    assert asked(FIRST, "main", at) == expected
    assert asked(LABELLED, SECOND.revision, at) == expected


def test_a_quarantine_asks_anew() -> None:
    scoring = asked(FIRST, "main", replace(GOLDEN, quarantines=2))

    assert scoring.round == 2


@cases(
    ("told", "changes"),
    {
        "another revision": (THIRD, {}),
        "after the rollout": (FIRST, {"at": state(SECOND, Phase.SUCCEEDED)}),
        "a model without a golden set": (FIRST, {"wanted": SECOND}),
        "a gate that was put aside": (FIRST, {"at": replace(GOLDEN, skipped=("goldenQuality",))}),
        "no such gate": (FIRST, {"known": record(policy=RolloutPolicy(gates=(ErrorRateGate(),)))}),
        "nothing to compare": (FIRST, {"known": record(policy=RolloutPolicy(strategy="immediate"))}),
    },
)
def test_nobody_else_is_asked(told: AssignedModel, changes: dict[str, Any]) -> None:
    assert asked(told, "main", **changes) is None


def test_a_group_that_was_asked_stays_asked_while_its_servers_restart() -> None:
    told = FIRST.model_copy(update={"scoring": GoldenScoring(golden=SET, interval_s=300.0)})
    main = replace(pair()[0], servers=(), assignment=Assignment(models=(told,)))

    assert asked(FIRST, "main", groups=(main, pair()[1])) is not None


# What the scores say


def test_equal_scores_pass_at_the_gates_share_of_alpha() -> None:
    found = verdict(seen())

    assert (found.outcome, found.reason) == (Outcome.PASS, "NoWorse")
    assert found.numbers["bound"] == pytest.approx(-math.log(POLICY.alpha / 2))
    assert found.numbers["images"] == 40


def test_the_mean_over_servers_is_compared_image_by_image() -> None:
    rng = np.random.default_rng(1)
    rows = rng.random((5, 30))
    servers = [server(f"own-{n}", said(SECOND, score_report(SHA, list(row)))) for n, row in enumerate(rows[:3])]
    main = [server(f"main-{n}", said(FIRST, score_report(SHA, list(row)))) for n, row in enumerate(rows[3:])]
    stable, own = pair()
    found = verdict(seen(groups=(replace(stable, servers=tuple(main)), replace(own, servers=tuple(servers)))))

    assert found.numbers["meanChange"] == pytest.approx(rows[:3].mean() - rows[3:].mean(), abs=1e-4)
    assert found.numbers["iou"] == pytest.approx(rows[:3].mean(), abs=1e-4)
    assert found.numbers["iou.stable"] == pytest.approx(rows[3:].mean(), abs=1e-4)


def test_a_verdict_counts_images_and_classes_that_no_report_has_one_by_one() -> None:
    own = GOOD.model_copy(update={"images": 300, "classes_left_out": 7, "at_limit": 3})

    assert "7 further classes" in verdict(seen(groups=pair(own=own))).message
    assert "260 further images" in verdict(seen(groups=pair(own=own))).message
    assert "3 answers reached the limit" in verdict(seen(groups=pair(own=own))).message


def test_a_candidate_that_is_worse_on_one_sites_images_is_stopped_whichever_images_stable_did_not_answer() -> None:
    rng = np.random.default_rng(1)
    names = ["north" if number % 10 else "south" for number in range(80)]
    slices, packed = pack_slices(names)
    rows = 0.9 + 0.01 * rng.standard_normal((2, 80))
    rows[1, [name == "south" for name in names]] -= 0.4
    rows[0, 5:11] = math.nan
    stable, own = (score_report(SHA, list(row)).model_copy(update={"slices": slices, "sliced": packed}) for row in rows)
    found = verdict(seen(groups=pair(stable, own)))

    assert (found.outcome, found.reason) == (Outcome.BREACH, "WorseInSlice")
    assert "slice 'south' changes by -0." in found.message
    assert "on 7 images" in found.message


def test_images_without_an_answer_count_against_the_candidate_and_are_not_compared_with_stable() -> None:
    missing = math.nan
    stable = score_report(SHA, [missing, 0.9, 0.9], iou=0.9, classes={0: 0.9})
    own = score_report(SHA, [0.9, missing, 0.9], iou=0.6, classes={0: 0.9})
    found = verdict(seen(groups=pair(stable, own)))

    assert found.numbers["images"] == 2
    assert found.numbers["meanChange"] == pytest.approx(-0.45, abs=1e-4)


def test_a_lost_class_is_named_as_the_candidates_spec_names_it() -> None:
    stable, own = (score_report(SHA, [0.9] * 3, {0: 0.9, 1: number}) for number in (0.9, 0.2))
    found = verdict(seen(groups=pair(stable, own)))

    assert (found.outcome, found.reason) == (Outcome.BREACH, "ClassLost")
    assert "'coin'" in found.message


def test_a_stable_revision_that_answers_no_image_is_not_compared() -> None:
    found = verdict(seen(groups=pair(score_report(SHA, [math.nan] * 3, iou=0.0, recall=0.0))))

    assert (found.outcome, found.reason) == (Outcome.PASS, "WithoutStable")
    assert "iou.stable" not in found.numbers


def test_one_server_with_scores_is_enough_on_each_side() -> None:
    stable, own = pair()
    slow = server("main-9", said(FIRST, ScoreReport(golden_sha256=SHA)))
    broken = server("own-9", said(SECOND, ScoreReport(golden_sha256=SHA, reason="SourceSlow", message="no answer")))
    groups = (replace(stable, servers=(slow, *stable.servers)), replace(own, servers=(broken, *own.servers)))

    assert (found := verdict(seen(groups=groups))) is not None
    assert found.outcome is Outcome.PASS


def test_the_promoted_revision_is_compared_with_the_one_before() -> None:
    found = verdict(seen(BAKING, roles=PROMOTED, groups=pair(GOOD, score_report(SHA, [0.5] * 40))))

    assert found.outcome is Outcome.BREACH


# Scores that cannot be had

LATER = ScoreReport(golden_sha256=SHA)
FAILED = ScoreReport(golden_sha256=SHA, reason="SourceUnauthorized", message="no Secret for s3://private")
UNREADABLE = ScoreReport(golden_sha256=SHA, images=3, qualities="?")


@cases(
    ("stable", "own", "why"),
    {
        "a set that cannot be fetched": (
            GOOD,
            FAILED,
            "the candidate's servers cannot score the golden set: SourceUnauth",
        ),
        "not by stable either": (FAILED, GOOD, "stable's servers cannot score the golden set"),
    },
)
def test_a_set_that_cannot_be_scored_is_undecided_with_the_reason(stable: Any, own: Any, why: str) -> None:
    found = verdict(seen(groups=pair(stable, own)))

    assert (found.outcome, found.reason) == (Outcome.UNDECIDED, UNAVAILABLE)
    assert why in found.message


@cases(
    "own",
    {
        "scores that are still measured": LATER,
        "scores of another set": score_report("b" * 64, [0.1]),
        "scores that cannot be read": UNREADABLE,
    },
)
def test_nothing_is_said_while_there_are_no_scores(own: Any) -> None:
    assert verdict(seen(groups=pair(GOOD, own))) is None


def test_a_verdict_stays_when_later_scores_cannot_be_had() -> None:
    passed = Verdict("goldenQuality", Outcome.PASS, "NoWorse", "as good")

    assert verdict(seen(PROGRESSING, known=record(passed), groups=pair(GOOD, FAILED))) == passed
    assert verdict(seen(PROGRESSING, known=record(passed), groups=pair(LATER, LATER))) == passed


LACKING = Verdict("goldenQuality", Outcome.UNDECIDED, UNAVAILABLE, "no Secret")


@cases(
    ("at", "known", "since_s", "golden", "allowed"),
    {
        "wait for the progress deadline": (GOLDEN, record(LACKING), 599.0, 0, False),
        "end after it": (GOLDEN, record(LACKING), 600.0, -1, False),
        "wait while a person holds": (replace(GOLDEN, paused=True), record(LACKING), 6e5, 0, False),
        "wait anew after a pause": (replace(GOLDEN, resumed_s=NOW_S + 300), record(LACKING), 600.0, 0, False),
        "wait for scores that are still measured": (GOLDEN, record(), 6e5, 0, False),
        "go on where the policy promotes": (
            GOLDEN,
            record(LACKING, policy=POLICY.model_copy(update={"on_undecided": "Promote"})),
            600.0,
            1,
            True,
        ),
        "stay on their way": (
            PROGRESSING,
            record(LACKING, policy=POLICY.model_copy(update={"on_undecided": "Promote"})),
            0.0,
            1,
            True,
        ),
    },
)
def test_rollouts_without_scores(at: RolloutState, known: Record, since_s: float, golden: int, allowed: bool) -> None:
    at = replace(at, since_s=NOW_S)
    found = gather_signals(seen(at, known=known, now_s=NOW_S + since_s))

    assert (int(found.golden), bool(found.allowed)) == (golden, allowed)


def test_scores_that_are_measured_for_longer_than_the_rollouts_deadline_are_not_waited_for() -> None:
    deadline_s = POLICY.deadline.total_seconds()
    at = replace(GOLDEN, since_s=NOW_S)
    before, after = (
        verdict(seen(at, groups=pair(GOOD, LATER), now_s=NOW_S + waited_s)) for waited_s in (deadline_s - 1, deadline_s)
    )

    assert before is None
    assert after.reason == UNAVAILABLE
