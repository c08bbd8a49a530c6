"""Agents make references of drift on request: of a file, or of answers to their golden images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.golden_pictures import Pictures, semantic, truth
from segserve_builder.agent.decide import next_actions, reports
from segserve_builder.agent.protocol import (
    MAX_REFERENCE_LENGTH,
    AnswerCounting,
    AssignedModel,
    ModelReport,
    ReferenceReport,
    ReferenceSource,
)
from segserve_builder.agent.references import (
    MAX_FILE_BYTES,
    MAX_IMAGES,
    TURN_S,
    References,
    count_golden,
    sampled,
)
from segserve_builder.agent.runner import ActionResult, ActionRunner
from segserve_builder.agent.scoring import DEATHS_ALLOWED, SHARE
from segserve_builder.agent.server import Repository
from segserve_builder.agent.state import AgentState, AssignedRevision, Refer, Score, ServerSnapshot
from segserve_builder.golden.judging import Case
from segserve_builder.sources.access import LOCAL, Access, Signatures
from segserve_builder.spec.model_spec import Golden, ReferenceFile
from segserve_builder.steps.answer_metrics import AnswerMetrics, Measures
from segserve_builder.steps.image_statistics import measure
from segserve_builder.values import ClassMasks, ResizeTransform
from segserve_common.kube.shards import unpack

from .test_agent_scoring import Answering, serving

FILE = ReferenceFile(uri="reference.json", sha256="c" * 64)
GOLDEN = Golden(uri="golden", sha256="a" * 64)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    found = Pictures(tmp_path / "golden")
    found.write()
    return found


def asked(spec: AssignedModel, file: ReferenceFile | None = None) -> AssignedRevision:
    counting = AnswerCounting(interval_s=5.0, reference=ReferenceSource(file=file))
    return AssignedRevision.of(spec.model_copy(update={"counting": counting}))


def made(sha256: str = FILE.sha256, length: int = 10) -> ReferenceReport:
    return ReferenceReport(sha256=sha256, content="x" * length)


# Decisions and reports


def test_a_proved_revision_makes_its_reference_once_while_no_other_golden_images_are_answered(
    pictures: Pictures,
) -> None:
    coins = asked(pictures.revision())
    state, server = serving(coins)
    assert coins.spec.golden is not None
    assert next_actions((coins,), server, state, 0.0) == (Refer(coins.revision, "coins", coins.spec.golden),)

    state.start(Score("cells-1", "cells", GOLDEN), 0.0)
    assert next_actions((coins,), server, state, 0.0) == ()

    state.running.clear()
    state.references.keep(coins.revision, made())
    assert next_actions((coins,), server, state, 1e9) == ()


def test_a_report_says_that_references_can_be_had_and_has_one_while_it_is_asked_for(pictures: Pictures) -> None:
    coins = asked(pictures.revision())
    unasked = AssignedRevision.of(pictures.revision())
    state, server = serving(coins)
    assert report_on(coins, state, server).reference is None

    state.references.keep(coins.revision, made())
    report = report_on(coins, state, server)

    assert report.proved is not None
    assert report.proved.can_refer
    assert report.reference == made()
    assert ModelReport.read(report.to_json()) == report

    state.keep_only((unasked,))
    assert report_on(unasked, state, server).reference is None


def test_a_reference_is_made_anew_on_a_server_that_lost_the_revision(pictures: Pictures) -> None:
    coins = asked(pictures.revision())
    state, _ = serving(coins)
    state.references.keep(coins.revision, made())

    state.invalidate_proofs((coins,), ServerSnapshot(ready=True))

    assert not state.references.reported()
    assert state.references.due_s(coins.revision) < 0.0


def report_on(assigned: AssignedRevision, state: Any, server: ServerSnapshot) -> ModelReport:
    (report,) = reports((assigned,), server, state)
    return report


def test_another_file_or_golden_set_begins_anew_and_a_failure_is_tried_again() -> None:
    references = References()
    references.follow({"coins-1": FILE})
    references.fail("coins-1", "ArtifactMissing", "nothing there " * 100, 0.0, 1.0, retryable=False)
    told = references.reported()["coins-1"]

    assert (told.sha256, told.reason) == (FILE.sha256, "ArtifactMissing")
    assert len(told.message) == 300
    assert 0.0 < references.due_s("coins-1") <= 120.0

    references.keep("coins-1", made())
    assert references.due_s("coins-1") == math.inf
    for other in (GOLDEN, Golden(uri="golden", sha256="b" * 64)):
        references.follow({"coins-1": other})
        assert not references.reported()
        assert references.due_s("coins-1") < 0.0
        references.keep("coins-1", made())


def full(count: int = 5) -> tuple[References, list[str]]:
    """Return references of as many files, of which a report holds two, and their revisions."""
    references, names = References(), [f"coins-{number}" for number in range(count)]
    files = [FILE.model_copy(update={"sha256": f"{number:064}"}) for number in range(count)]
    references.follow(dict(zip(names, files, strict=True)))
    for name, file in zip(names, files, strict=True):
        references.keep(name, made(file.sha256, MAX_REFERENCE_LENGTH))
    return references, names


def test_a_report_has_a_bounded_length_of_files_and_the_others_follow_once_these_were_taken() -> None:
    references, names = full()
    assert list(references.reported()) == names[:2]

    references.follow({name: FILE.model_copy(update={"sha256": f"{name[-1]:0>64}"}) for name in names[2:]})

    assert list(references.reported()) == names[2:4]


def test_files_that_nobody_takes_keep_no_other_out_of_the_report_for_ever() -> None:
    references, names = full()
    seen = set[str]()
    for turn in range(5):
        now_s = turn * TURN_S
        references.rotate(now_s)
        seen |= references.reported().keys()
        before = references.reported().keys()
        references.rotate(now_s + TURN_S / 2)
        assert references.reported().keys() == before

    assert seen == set(names)


def test_a_file_of_many_models_is_in_a_report_once_and_reasons_are_for_all_of_them() -> None:
    references, names = References(), [f"coins-{number}" for number in range(5)]
    references.follow(dict.fromkeys(names, FILE))
    for name in names[:4]:
        references.keep(name, made(length=MAX_REFERENCE_LENGTH))
    references.fail(names[4], "ArtifactMissing", "nothing there", 0.0, 1.0, retryable=True)

    assert list(references.reported()) == [names[0], names[4]]


def golden_failing(**outcome: Any) -> Iterator[References]:
    """Yield references whose golden images fail again and again, after each failure."""
    references = References()
    references.follow({"coins-1": GOLDEN})
    while True:
        references.fail("coins-1", "ServerSlow", "no answer", 0.0, 100.0, **outcome)
        yield references


def test_golden_images_that_fail_take_a_small_part_of_a_servers_time() -> None:
    failing = golden_failing(retryable=True)
    for _ in range(20):
        assert next(failing).due_s("coins-1") == 100.0 / SHARE


def test_golden_images_that_cannot_be_answered_are_not_tried_again() -> None:
    references = next(golden_failing(retryable=False))

    assert references.due_s("coins-1") == math.inf
    assert references.reported()["coins-1"].reason == "ServerSlow"


def test_golden_images_that_end_the_server_are_given_up_though_it_loses_the_revision_each_time() -> None:
    failing = golden_failing(retryable=False, died=True)
    for _ in range(DEATHS_ALLOWED - 1):
        references = next(failing)
        references.lose("coins-1")
        assert references.due_s("coins-1") < 0.0

    references = next(failing)
    references.lose("coins-1")

    assert references.due_s("coins-1") == math.inf
    assert references.reported()["coins-1"].reason == "ServerSlow"
    references.follow({"coins-1": Golden(uri="golden", sha256="b" * 64)})
    assert references.due_s("coins-1") < 0.0


def test_references_of_a_server_are_made_one_after_the_other_and_files_beside_golden_images(
    pictures: Pictures,
) -> None:
    spec = pictures.revision()
    others = [
        spec.model_copy(update={"pipeline": spec.pipeline.model_copy(update={"model": name}), "revision": f"{name}-1"})
        for name in ("cells", "roads", "roofs")
    ]
    assigned = [asked(spec), asked(others[0]), asked(others[1], FILE), asked(others[2], FILE)]
    state, server = serving_all(assigned)

    started = next_actions(assigned, server, state, 0.0)

    assert [action.subject for action in started] == ["golden scores", "reference files"]
    assert {action.model for action in started if isinstance(action, Refer)} == {"coins", "roads"}
    for action in started:
        assert isinstance(action, Refer)
        state.references.fail(action.revision, "ServerSlow", "no answer", 0.0, 0.0, retryable=True)
    others_first = next_actions(assigned, server, state, 1e6)
    assert {action.model for action in others_first if isinstance(action, Refer)} == {"cells", "roofs"}


def serving_all(assigned: list[AssignedRevision]) -> tuple[AgentState, ServerSnapshot]:
    """Return an agent that has proved some revisions, and its server."""
    state, whole = AgentState(), ServerSnapshot(True)
    for each in assigned:
        own, server = serving(each)
        state.prepared |= own.prepared
        state.proofs |= own.proofs
        whole = replace(
            whole,
            states={**whole.states, **server.states},
            loaded={**whole.loaded, **server.loaded},
            published={**whole.published, **server.published},
            folders=whole.folders | server.folders,
        )
    state.keep_only(assigned)
    return state, whole


# On a server


def referred(
    pictures: Pictures,
    file: ReferenceFile | None = None,
    access: Access = LOCAL,
    is_ordered: Callable[[], bool] = lambda: True,
) -> ActionResult:
    """Return what a runner makes of a request for a reference, beside a server that answers rightly."""
    spec = pictures.revision()
    pipeline = spec.pipeline.model_copy(update={"output": spec.pipeline.output.model_copy(update={"encoding": "rle"})})
    coins = asked(AssignedModel(pipeline=pipeline, artifact=spec.artifact, golden=spec.golden), file)
    state, _ = serving(coins)
    prepared = state.prepared[coins.revision]
    root = pictures.folder.parent
    server: Any = Answering(lambda image: semantic(pictures.shown[image], coins.revision))
    runner = ActionRunner(
        server, Repository(root / "repository"), root / "cache", root / "log", base=str(root), access=access
    )
    assert coins.reference is not None
    action = Refer(coins.revision, "coins", coins.reference)
    proved = replace(prepared, golden=pictures.folder)
    return runner.carry_out(action, coins, proved, is_ordered=is_ordered)


def written(folder: Path, content: bytes) -> ReferenceFile:
    (folder / "reference.json").write_bytes(content)
    return ReferenceFile(uri="reference.json", sha256=hashlib.sha256(content).hexdigest())


def test_golden_images_are_counted_as_the_last_step_counts_callers_images(pictures: Pictures) -> None:
    report = referred(pictures).reference
    assert report is not None
    spec = pictures.revision()
    metrics = AnswerMetrics(spec.pipeline, spec.metrics)
    for number in range(len(pictures.shown)):
        areas = np.bincount(truth(number).ravel(), minlength=3)
        masks = tuple(bytes(each) for each in semantic(truth(number), "")["MASKS"])
        value = ClassMasks(masks, areas, np.full(3, np.nan, np.float32), *truth(number).shape)
        pixels = np.full((*truth(number).shape, 3), number, np.uint8)
        measures = Measures(measure(pixels), 0.0, 0.0, 0.0)
        metrics.count(value, {}, ResizeTransform.of(*truth(number).shape), measures, (0.0, 0.0), is_test=False)
    steps = {(each.name, each.labels.get("class"), each.labels.get("le")): each.amount for each in metrics.take()}

    assert spec.golden is not None
    assert (report.sha256, report.images) == (spec.golden.sha256, 6)
    assert report.histograms["classShare:coin"] == (0, 6)
    assert report.histograms["classShare:stamp"] == (5, 1)
    assert steps["segserve_class_answers_total", "stamp", None] == 1
    below = np.cumsum(report.histograms["area:coin"])
    assert below[-1] == steps["segserve_class_area_ratio_bucket", "coin", "+Inf"]
    assert below[-3] == steps.get(("segserve_class_area_ratio_bucket", "coin", "0.3"), 0.0)
    assert sum(report.histograms["brightness"]) == 6
    assert report.observations["brightness"] == report.observations["area:table"] == 6.0
    assert report.observations["area:stamp"] == 1.0


def objects(scores: list[float]) -> dict[str, Any]:
    """Return an answer with coins of these scores."""
    count = len(scores)
    return {
        "SIZE": np.array([24, 32]),
        "CLASSES": np.ones(count, np.int32),
        "SCORES": np.array(scores, np.float32),
        "BOXES": np.zeros((count, 4), np.float32),
    }


def test_objects_of_one_image_count_as_less_than_as_many_images(pictures: Pictures) -> None:
    image = next(iter(pictures.shown))
    answered = [(str(number), image, objects([0.55] * count)) for number, count in enumerate([9, 1, 0, 0])]

    report = count_golden(pictures.revision(), "a" * 64, answered)

    assert report.images == 4
    assert report.histograms["emptyAnswers"] == (2, 2)
    assert sum(report.histograms["score:coin"]) == 10
    assert report.observations["score:coin"] == pytest.approx(100 / 82, abs=0.01)
    assert report.observations["emptyAnswers"] == 4.0
    assert report.image_shares.keys() == {"score:coin"}


def test_each_image_has_the_same_part_in_the_shares_of_images_however_many_objects_it_has(pictures: Pictures) -> None:
    image = next(iter(pictures.shown))
    answered = [("many", image, objects([0.55] * 9)), ("one", image, objects([0.95]))]

    report = count_golden(pictures.revision(), "a" * 64, answered)

    assert [share for share in report.image_shares["score:coin"] if share] == [0.5, 0.5]
    assert [count for count in report.histograms["score:coin"] if count] == [9, 1]


def test_an_order_that_is_withdrawn_or_changed_ends_the_replay_without_an_outcome(pictures: Pictures) -> None:
    answers = iter([True, True, False])

    result = referred(pictures, is_ordered=lambda: next(answers))

    assert (result.reference, result.failure) == (None, None)
    with pytest.raises(StopIteration):
        next(answers)

    coins = asked(pictures.revision())
    assert coins.spec.golden is not None
    assert coins.orders(Refer(coins.revision, "coins", coins.spec.golden))
    assert not coins.orders(Refer(coins.revision, "coins", GOLDEN))
    assert not asked(pictures.revision(), FILE).orders(Refer(coins.revision, "coins", coins.spec.golden))
    assert not AssignedRevision.of(pictures.revision()).orders(Refer(coins.revision, "coins", coins.spec.golden))


def test_of_a_large_golden_set_each_server_counts_the_same_sample_and_not_the_first_images() -> None:
    cases = tuple(Case.model_construct(image=f"{number:04}.png") for number in range(2 * MAX_IMAGES))

    chosen = sampled(cases, "a" * 64)

    assert len(set(chosen)) == MAX_IMAGES
    assert 0.4 < sum(each in cases[:MAX_IMAGES] for each in chosen) / MAX_IMAGES < 0.6
    assert chosen == sampled(cases, "a" * 64)
    assert sampled(cases[:MAX_IMAGES], "a" * 64) == cases[:MAX_IMAGES]


def test_a_file_without_a_signature_is_refused_where_the_pool_requires_one(pictures: Pictures) -> None:
    file = written(pictures.folder.parent, json.dumps({"window": "1m", "histograms": {}}).encode())
    demanding = LOCAL.model_copy(update={"signatures": Signatures(required=True)})

    result = referred(pictures, file, demanding)

    assert result.reference is None
    assert result.failure is not None
    assert result.failure.reason == "SignatureRejected"


def test_a_file_is_read_once_its_digest_is_right(pictures: Pictures) -> None:
    file = written(pictures.folder.parent, json.dumps({"window": "1m", "histograms": {}}).encode())

    report = referred(pictures, file).reference

    assert report is not None
    assert report.sha256 == file.sha256
    assert unpack(report.content) == {"window": "1m", "histograms": {}}


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"shares: [1]", "ReferenceInvalid", "is not JSON"),
        (b"[1, 2]", "ReferenceInvalid", "holds a list; a JSON object is expected"),
        (b" " * (MAX_FILE_BYTES + 1), "ArtifactTooLarge", ""),
        (
            json.dumps({"noise": np.random.default_rng(0).random(20_000).tolist()}).encode(),
            "ReferenceInvalid",
            f"allowed are {MAX_REFERENCE_LENGTH}",
        ),
    ],
    ids=["no JSON", "no object", "too large", "packs too large"],
)
def test_what_is_no_reference_has_a_typed_reason(pictures: Pictures, content: bytes, reason: str, message: str) -> None:
    result = referred(pictures, written(pictures.folder.parent, content))

    assert result.reference is None
    assert result.failure is not None
    assert result.failure.reason == reason
    assert message in result.failure.message


def test_another_file_than_the_digest_says_is_no_reference(pictures: Pictures) -> None:
    file = written(pictures.folder.parent, b"{}")

    result = referred(pictures, file.model_copy(update={"sha256": "d" * 64}))

    assert result.reference is None
    assert result.failure is not None
    assert result.failure.reason == "DigestMismatch"
