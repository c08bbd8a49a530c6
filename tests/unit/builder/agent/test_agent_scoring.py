"""Agents replay a golden set on request, beside everything else, and report packed scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.artifact_server import artifact_server
from fakes.golden_pictures import Pictures, semantic
from segserve_builder.agent.decide import next_actions, reports
from segserve_builder.agent.protocol import (
    MAX_GOLDEN_SLICES,
    AssignedModel,
    GoldenScoring,
    ModelReport,
    ScoreReport,
    pack_classes,
    pack_qualities,
    pack_slices,
    unpack_classes,
    unpack_qualities,
    unpack_slices,
)
from segserve_builder.agent.runner import ActionResult, ActionRunner
from segserve_builder.agent.scoring import (
    DEATHS_ALLOWED,
    MAX_CLASSES,
    MAX_IMAGES,
    MAX_MESSAGE,
    SHARE,
    Replays,
    report_of,
)
from segserve_builder.agent.server import Repository, TritonRefusedError, TritonUnreachableError
from segserve_builder.agent.state import (
    READY,
    AgentState,
    AssignedRevision,
    Ensemble,
    Prepared,
    Proof,
    Score,
    ServerSnapshot,
    Try,
)
from segserve_builder.render.tree import Tree
from segserve_builder.scoring.quality import Quality
from segserve_builder.scoring.replay import GoldenScores
from segserve_builder.sources.access import LOCAL, Access
from segserve_builder.spec.model_spec import Golden
from segserve_builder.spec.names import STEP_PREFIX
from segserve_common.kube.shards import pack

GOLDEN = Golden(uri="s3://private/golden", sha256="a" * 64)
OTHER = Golden(uri="s3://private/golden", sha256="b" * 64)
SCORING = GoldenScoring(golden=GOLDEN, interval_s=600.0)
STEP = f"{STEP_PREFIX}net--1"
PERFECT = GoldenScores(Quality((1.0, 1.0), {0: 1.0}, {"iou": 1.0, "recall": 1.0}), (1.0, 1.0), labelled=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    found = Pictures(tmp_path / "golden")
    found.write()
    return found


def scored_by(spec: AssignedModel, scoring: GoldenScoring | None) -> AssignedRevision:
    return AssignedRevision.of(spec.model_copy(update={"scoring": scoring}))


def serving(assigned: AssignedRevision) -> tuple[AgentState, ServerSnapshot]:
    """Return an agent that has proved a revision, and its server."""
    ensemble = Ensemble(assigned.revision, frozenset({STEP}))
    state = AgentState()
    state.prepare(Prepared(assigned, Tree({STEP: {}}, (assigned.model, {}), None), {STEP: 1}, None))
    golden = assigned.spec.golden
    state.prove(assigned.revision, Proof("golden", golden.sha256 if golden is not None else None))
    state.keep_only((assigned,))
    names = {STEP: READY, assigned.model: READY}
    loaded = {assigned.model: ensemble}
    return state, ServerSnapshot(True, names, loaded, loaded, frozenset(names))


# Decisions


def test_a_proved_revision_is_scored_on_the_set_that_is_asked_for_and_again_after_the_interval(
    pictures: Pictures,
) -> None:
    coins = scored_by(pictures.revision(), SCORING)
    state, server = serving(coins)
    assert next_actions((coins,), server, state, 0.0) == (Score(coins.revision, "coins", GOLDEN),)

    state.replays.keep(coins.revision, PERFECT, 0.0, 1.0)

    assert next_actions((coins,), server, state, 599.0) == ()
    assert next_actions((coins,), server, state, 600.0) == (Score(coins.revision, "coins", GOLDEN),)


def test_a_revision_is_neither_scored_before_its_proof_nor_unasked(pictures: Pictures) -> None:
    unasked, asked = scored_by(pictures.revision(), None), scored_by(pictures.revision(), SCORING)
    state, server = serving(unasked)
    assert next_actions((unasked,), server, state, 0.0) == ()

    state.keep_only((asked,))
    state.revisions[asked.revision].proof = None

    assert not [action for action in next_actions((asked,), server, state, 0.0) if isinstance(action, Score)]


def test_one_replay_runs_at_a_time_and_trials_of_the_same_revision_come_first(pictures: Pictures) -> None:
    spec = pictures.revision()
    coins = AssignedRevision.of(
        AssignedModel.model_validate(
            spec.model_dump(by_alias=True, exclude_none=True)
            | {"scoring": SCORING.model_dump(by_alias=True), "trial": {"golden": OTHER.model_dump()}}
        )
    )
    state, server = serving(coins)
    assert next_actions((coins,), server, state, 0.0) == (Try(coins.revision, "coins", OTHER),)

    state.fail_trial(coins.trial or coins, "GoldenFailed", "IoU .1", retry_from_s=None)
    state.start(Score("cells-1", "cells", GOLDEN), 0.0)

    assert next_actions((coins,), server, state, 0.0) == ()


def test_a_request_for_scores_changes_neither_the_revision_nor_its_proof(pictures: Pictures) -> None:
    plain, asked = scored_by(pictures.revision(), None), scored_by(pictures.revision(), SCORING)

    assert plain == asked
    assert asked.spec.scoring is None
    assert [spec.golden for spec in asked.specs] == [plain.spec.golden, GOLDEN]


# Reports


def report_on(state: AgentState, server: ServerSnapshot, coins: AssignedRevision) -> ModelReport:
    (report,) = reports((coins,), server, state)
    return report


def test_a_report_has_no_scores_before_the_first_replay(pictures: Pictures) -> None:
    coins = scored_by(pictures.revision(), SCORING)
    state, server = serving(coins)
    report = report_on(state, server, coins)

    assert report.scores == ScoreReport(golden_sha256=GOLDEN.sha256)


def test_scores_stay_when_a_later_replay_fails_and_go_with_the_request(pictures: Pictures) -> None:
    coins, unasked = scored_by(pictures.revision(), SCORING), scored_by(pictures.revision(), None)
    state, server = serving(coins)
    state.replays.keep(coins.revision, PERFECT, 0.0, 1.0)
    state.replays.fail(coins.revision, "ServerSlow", "no answer " * 100, 600.0, retryable=True)
    report = report_on(state, server, coins).scores

    assert report is not None
    assert (report.images, report.iou, report.reason) == (2, 1.0, "ServerSlow")
    assert len(report.message) == MAX_MESSAGE

    state.keep_only((unasked,))

    assert report_on(state, server, unasked).scores is None


def test_scores_of_a_server_that_lost_the_revision_are_forgotten(pictures: Pictures) -> None:
    coins = scored_by(pictures.revision(), SCORING)
    state, _ = serving(coins)
    state.replays.keep(coins.revision, PERFECT, 0.0, 1.0)

    state.invalidate_proofs((coins,), ServerSnapshot(ready=True))

    assert state.replays.report(coins.revision) == ScoreReport(golden_sha256=GOLDEN.sha256)
    assert state.replays.due_s(coins.revision) <= 0.0


def test_a_server_that_lost_the_revision_by_a_replay_too_often_gets_no_more() -> None:
    replays = followed()
    for _ in range(DEATHS_ALLOWED):
        assert replays.due_s("coins-1") <= 0.0
        replays.fail("coins-1", "StepDied", "it died", 0.0, retryable=True, died=True)
        replays.lose("coins-1")

    assert replays.due_s("coins-1") == math.inf
    told = replays.report("coins-1")
    assert told is not None
    assert told.reason == "StepDied"


# When replays are due


def followed(scoring: GoldenScoring = SCORING) -> Replays:
    replays = Replays()
    replays.follow({"coins-1": scoring})
    return replays


def test_replays_take_a_small_part_of_a_servers_time_however_large_the_set() -> None:
    replays = followed()
    replays.keep("coins-1", PERFECT, 0.0, 90.0)

    assert replays.due_s("coins-1") == 90.0 / SHARE


def test_another_round_is_due_at_once_and_the_former_scores_stay_until_it_is_done() -> None:
    replays = followed()
    replays.keep("coins-1", PERFECT, 0.0, 1.0)
    assert replays.due_s("coins-1") > 1.0

    replays.follow({"coins-1": SCORING.model_copy(update={"round": 1})})

    assert replays.due_s("coins-1") <= 1.0
    assert (replays.report("coins-1") or ScoreReport(golden_sha256="")).images == 2


def test_another_set_begins_anew() -> None:
    replays = followed()
    replays.keep("coins-1", PERFECT, 0.0, 1.0)

    replays.follow({"coins-1": SCORING.model_copy(update={"golden": OTHER})})

    assert replays.report("coins-1") == ScoreReport(golden_sha256=OTHER.sha256)
    assert replays.due_s("coins-1") <= 1.0


def test_what_may_pass_is_tried_again_and_what_does_not_is_left() -> None:
    passing, lasting = followed(), followed()
    passing.fail("coins-1", "SourceUnauthorized", "no Secret", 0.0, retryable=True)
    lasting.fail("coins-1", "GoldenFailed", "no labels", 0.0, retryable=False)

    assert 0.0 < passing.due_s("coins-1") <= 120.0
    assert lasting.due_s("coins-1") == math.inf
    assert [found.reason for each in (passing, lasting) if (found := each.report("coins-1"))] == [
        "SourceUnauthorized",
        "GoldenFailed",
    ]


def test_images_that_servers_die_of_are_given_up_after_three_replays() -> None:
    replays = followed()
    for _ in range(DEATHS_ALLOWED):
        assert replays.due_s("coins-1") <= 1e6
        replays.fail("coins-1", "ServerNotReady", "gone", 0.0, retryable=True, died=True)

    assert replays.due_s("coins-1") > 1e9


# Packing


def test_packed_qualities_are_exact_to_a_hundred_thousandth() -> None:
    values = [0.0, 1.0, 0.5, 0.123456, math.nan]
    found = unpack_qualities(pack_qualities(values))

    assert found == pytest.approx(values, abs=1e-5, nan_ok=True)
    assert unpack_classes(pack_classes([(0, 0.25), (65535, math.nan)])) == pytest.approx(
        {0: 0.25, 65535: math.nan}, abs=1e-5, nan_ok=True
    )


@pytest.mark.parametrize("text", ["x", "AAA=", "AAAAAAA="])
def test_what_is_no_packed_quality_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|bytes"):
        unpack_classes(text)


def test_slices_of_images_are_packed_and_those_beyond_the_limit_are_other() -> None:
    few = ["north", "", "south", "north"]
    many = [f"site-{number}" for number in range(MAX_GOLDEN_SLICES + 3)]

    assert unpack_slices(*pack_slices(few)) == tuple(few)
    assert unpack_slices(*pack_slices(many)) == (*many[:MAX_GOLDEN_SLICES], "other", "other", "other")
    assert pack_slices(["", ""]) == ((), "")
    with pytest.raises(ValueError, match="an image of slice 2; there are 1"):
        unpack_slices(("north",), pack_slices(few)[1])


def test_a_report_of_a_large_set_with_many_classes_is_bounded_and_its_means_are_over_all() -> None:
    rng = np.random.default_rng(0)
    images = tuple(rng.random(5000))
    classes = {number: float(quality) for number, quality in enumerate(rng.random(1200))}
    sites = tuple(f"{number % 100:030}" for number in range(5000))
    large = report_of("a" * 64, GoldenScores(Quality(images, classes, {"iou": 0.5}), images, True, sites))
    usual = report_of(
        "a" * 64, GoldenScores(Quality(images[:50], dict(list(classes.items())[:20]), {"iou": 0.5}), images[:50], True)
    )

    assert (large.images, large.iou, large.classes_left_out) == (5000, 0.5, 1200 - MAX_CLASSES)
    assert len(unpack_qualities(large.qualities)) == MAX_IMAGES
    assert unpack_qualities(large.qualities) == pytest.approx(images[:MAX_IMAGES], abs=1e-5)
    sizes = [
        len(pack(report.model_dump(mode="json", by_alias=True, exclude_defaults=True))) for report in (large, usual)
    ]
    assert sizes[0] < 3000
    assert sizes[1] < 600


# Replays on a server


class Answering:
    """A server that answers pictures as it is told."""

    def __init__(self, answering: Any) -> None:
        self.answering = answering
        self.asked: list[bytes] = []

    def infer(self, model: str, image: bytes, parameters: Any, timeout_s: float) -> Any:
        self.asked.append(image)
        return self.answering(image)


@contextmanager
def replayed(
    pictures: Pictures, answering: Any, golden: Golden | None = None, access: Access = LOCAL
) -> Iterator[tuple[ActionResult, AssignedRevision, ActionRunner]]:
    spec = pictures.revision()
    assert spec.golden is not None
    pipeline = spec.pipeline.model_copy(update={"output": spec.pipeline.output.model_copy(update={"encoding": "rle"})})
    spec = AssignedModel(pipeline=pipeline, artifact=spec.artifact)
    coins = scored_by(spec, GoldenScoring(golden=golden or pictures.revision().golden, interval_s=1.0))
    state, _ = serving(coins)
    root = pictures.folder.parent
    server: Any = Answering(lambda image: answering(image, coins.revision))
    runner = ActionRunner(server, Repository(root / "repository"), root / "cache", root / "log", access=access)
    assert coins.scoring is not None
    action = Score(coins.revision, "coins", coins.scoring.golden)
    yield runner.carry_out(action, coins, state.revisions[coins.revision].prepared), coins, runner


def test_a_replay_fetches_the_set_and_scores_the_servers_own_answers(pictures: Pictures) -> None:
    with replayed(pictures, lambda image, name: semantic(pictures.shown[image], name)) as (result, *_):
        assert result.failure is None
        assert result.scores is not None
        assert result.scores.images == (1.0,) * 6


def test_a_request_that_the_server_refuses_is_an_image_without_an_answer(pictures: Pictures) -> None:
    first = next(iter(pictures.shown))

    def answering(image: bytes, name: str) -> Any:
        if image == first:
            raise TritonRefusedError("INVALID_ARGUMENT", "too large")
        return semantic(pictures.shown[image], name)

    with replayed(pictures, answering) as (result, *_):
        assert result.scores is not None
        assert np.isnan(result.scores.images).sum() == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TritonRefusedError("UNAVAILABLE", "the queue is full"), "ProofFailed"),
        (TritonUnreachableError("no server"), None),
    ],
)
def test_a_server_that_is_busy_or_away_has_no_scores(pictures: Pictures, error: Exception, reason: str | None) -> None:
    def answering(*_: Any) -> Any:
        raise error

    with replayed(pictures, answering) as (result, *_):
        assert result.scores is None
        assert (result.failure.reason if result.failure is not None else None) == reason


def test_another_revisions_answers_are_no_scores(pictures: Pictures) -> None:
    with replayed(pictures, lambda image, _: semantic(pictures.shown[image], "coins-0")) as (result, *_):
        assert result.scores is None
        assert result.failure is not None
        assert "coins-0" in result.failure.message


def test_a_set_that_is_not_there_has_a_typed_reason(pictures: Pictures) -> None:
    (pictures.folder / "golden.json").write_text(json.dumps({"cases": []}))
    revision = pictures.revision()

    with replayed(pictures, lambda image, name: semantic(pictures.shown[image], name)) as (result, *_):
        assert revision.golden is not None
        assert result.failure is not None
        assert result.failure.reason == "GoldenFailed"


def test_a_set_that_needs_other_credentials_says_so_and_is_fetched_again_later(pictures: Pictures) -> None:
    own = pictures.revision().golden
    assert own is not None
    with artifact_server("127.0.0.1", pictures.folder.parent) as server, server.failing(401):
        golden, access = Golden(uri=f"{server.url}/golden/", sha256=own.sha256), Access(private=("127.0.0.1",))
        with replayed(pictures, lambda image, name: semantic(pictures.shown[image], name), golden, access) as (
            result,
            *_,
        ):
            assert result.failure is not None
            assert (result.failure.reason, result.failure.retryable) == ("SourceUnauthorized", True)


def test_an_agent_that_stops_ends_its_replay(pictures: Pictures) -> None:
    asked = list[bytes]()

    def answering(image: bytes, name: str) -> Any:
        asked.append(image)
        return semantic(pictures.shown[image], name)

    with replayed(pictures, answering) as (_, coins, runner):
        asked.clear()
        runner.stopping.set()
        state, _ = serving(coins)
        assert coins.scoring is not None
        action = Score(coins.revision, "coins", coins.scoring.golden)
        assert runner.carry_out(action, coins, state.revisions[coins.revision].prepared).scores is None
        assert asked == []
