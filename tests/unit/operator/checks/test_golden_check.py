"""Golden images are replayed to both groups and scored against their labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from fakes.artifact_server import artifact_server
from fakes.golden_pictures import CANDIDATE, STABLE, Pictures, check_of, context_of, numbers, png, semantic, truth
from fakes.internal_gateway import internal_listener
from segserve_builder.errors import GoldenError
from segserve_builder.golden.judging import Case, GoldenLabels, record
from segserve_builder.scoring.quality import score_objects
from segserve_builder.sources.access import Access
from segserve_operator.adapters.checks import golden
from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.golden_images import (
    GoldenImage,
    empty_regions,
    fetch_golden_images,
    labels_of_marks,
    regions_of,
)
from segserve_operator.core.gates.checks import CheckError, CheckResult

Answering = Callable[[bytes], Any]


def lost(pixels: np.ndarray) -> np.ndarray:
    """Return a label map whose stamps are called table."""
    return np.where(pixels == 2, 0, pixels).astype(np.uint8)


def shifted(pixels: np.ndarray) -> np.ndarray:
    return np.roll(pixels, 3, axis=0)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "DELAYS_S", (0.0, 0.0))


async def asked(
    tmp_path: Path, pictures: Pictures, stable: Answering, candidate: Answering
) -> tuple[CheckResult, list[CheckResult]]:
    told: list[CheckResult] = []
    async with internal_listener(main=stable, own=candidate) as listener:
        context = context_of(tmp_path, listener)
        try:
            found = await golden.run(check_of("golden", revision=pictures.revision()), context, told.append)
        finally:
            await context.gateway.close()
    return found, told


@pytest.mark.parametrize("labels", ["labelMap", "labels"])
async def test_equal_revisions_have_equal_scores(tmp_path: Path, pictures: Pictures, labels: str) -> None:
    pictures.write(labels=labels)

    found, told = await asked(tmp_path, pictures, pictures.answering(STABLE), pictures.answering(CANDIDATE))

    assert found.scores is not None
    assert found.scores.paired == ((1.0, 1.0),) * 6
    assert numbers(found.scores.means) == {"iou": (1.0, 1.0), "recall": (1.0, 1.0)}
    assert set(found.scores.classes) == {"table", "coin", "stamp"}
    assert found.scores.labelled
    assert (found.asked, found.failed) == ((6, 6), (0, 0))
    assert told
    assert not any(each.done for each in told)


async def test_without_labels_the_expected_answers_stand_in(tmp_path: Path, pictures: Pictures) -> None:
    pictures.write(labels="none")

    found, _ = await asked(tmp_path, pictures, pictures.answering(STABLE), pictures.answering(CANDIDATE, shifted))

    assert found.scores is not None
    assert not found.scores.labelled
    assert found.scores.means["iou"][0] < 0.8 < found.scores.means["iou"][1]


async def test_a_lost_rare_class_shows_in_its_own_number(tmp_path: Path, pictures: Pictures) -> None:
    found, _ = await asked(tmp_path, pictures, pictures.answering(STABLE), pictures.answering(CANDIDATE, lost))

    assert found.scores is not None
    assert numbers(found.scores.classes)["stamp"] == (0.0, 1.0)
    assert numbers(found.scores.classes)["coin"] == (1.0, 1.0)


async def test_wrong_masks_are_worse_on_every_image(tmp_path: Path, pictures: Pictures) -> None:
    found, _ = await asked(tmp_path, pictures, pictures.answering(STABLE), pictures.answering(CANDIDATE, shifted))

    assert found.scores is not None
    assert all(candidate < stable for candidate, stable in found.scores.paired)


@pytest.mark.parametrize("reply", [500, {"REVISION": np.array([CANDIDATE.encode()], np.object_)}])
async def test_a_candidate_that_answers_nothing_readable_shows_nothing(
    tmp_path: Path, pictures: Pictures, reply: Any
) -> None:
    found, _ = await asked(tmp_path, pictures, pictures.answering(STABLE), lambda _: reply)

    assert found.scores is not None
    assert numbers(found.scores.means)["iou"] == (0.0, 1.0)
    assert (found.asked, found.failed) == ((6, 18), (0, 18))


async def test_images_that_stable_fails_are_not_compared(tmp_path: Path, pictures: Pictures) -> None:
    good = pictures.answering(STABLE)
    first = next(iter(pictures.shown))

    def stable(image: bytes) -> Any:
        return 500 if image == first else good(image)

    found, _ = await asked(tmp_path, pictures, stable, pictures.answering(CANDIDATE))

    assert found.scores is not None
    assert len(found.scores.paired) == 5


async def test_without_stable_the_candidate_is_scored_alone(tmp_path: Path, pictures: Pictures) -> None:
    found, _ = await asked(tmp_path, pictures, lambda _: 500, pictures.answering(CANDIDATE))

    assert found.scores is not None
    assert found.scores.paired == ()
    assert found.scores.means["iou"][0] == 1.0
    assert np.isnan(found.scores.means["iou"][1])


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (lambda _: 503, "does not answer"),
        (lambda _: 404, "it broke"),
        (lambda _: semantic(truth(0), "coins-0000000009"), "coins-0000000009"),
    ],
)
async def test_a_candidate_that_was_not_asked_is_no_verdict(
    tmp_path: Path, pictures: Pictures, candidate: Answering, why: str
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await asked(tmp_path, pictures, pictures.answering(STABLE), candidate)

    assert caught.group_contains(CheckError, match=why)


async def test_a_gateway_that_is_away_is_no_verdict(tmp_path: Path, pictures: Pictures) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await golden.run(check_of("golden", revision=pictures.revision()), context_of(tmp_path), print)

    assert caught.group_contains(CheckError, match="no gateway accepts requests")


async def test_images_come_in_an_order_that_their_names_do_not_tell(tmp_path: Path, pictures: Pictures) -> None:
    pictures.write(count=12)

    found = await fetch_golden_images(check_of("golden", revision=pictures.revision()), context_of(tmp_path))

    names = [image.case.image for image in found.images]
    assert names != sorted(names)
    assert len(set(names)) == 12


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file:///srv/golden", "not below a folder that is allowed"),
        ("/srv/golden", "not below a folder that is allowed"),
        ("http://169.254.169.254/latest", "link-local"),
        ("http://127.0.0.1:1/golden", "this machine"),
        ("pvc://models/golden", "no claims are mounted here"),
    ],
)
async def test_the_operator_reads_nothing_that_only_it_could_read(
    tmp_path: Path, pictures: Pictures, uri: str, why: str
) -> None:
    with pytest.raises(CheckError, match=why):
        await fetch_golden_images(
            check_of("golden", revision=pictures.revision(uri)), context_of(tmp_path, local=False)
        )


async def test_files_below_the_operators_own_base_are_for_all(tmp_path: Path, pictures: Pictures) -> None:
    asked = check_of("golden", revision=pictures.revision("golden"))
    context = replace(context_of(tmp_path, local=False), base=tmp_path.as_uri)
    inside, outside = (below(context, tmp_path / at) for at in ("", "golden/other"))

    assert len((await fetch_golden_images(asked, inside)).images) == 6
    with pytest.raises(CheckError, match="not below a folder that is allowed"):
        await fetch_golden_images(asked, outside)


async def test_a_set_that_needs_a_secret_is_a_problem_that_says_so(tmp_path: Path, pictures: Pictures) -> None:
    with artifact_server("127.0.0.1", tmp_path) as server, server.failing(401):
        access = Access(private=("127.0.0.1",))
        context = replace(context_of(tmp_path, local=False), access=lambda: access)
        with pytest.raises(CheckError, match="the operator reads no Secrets of pools"):
            await fetch_golden_images(check_of("golden", revision=pictures.revision(f"{server.url}/golden/")), context)


def below(context: CheckContext, folder: Path) -> CheckContext:
    return replace(context, cache=context.cache / folder.name, access=lambda: Access(folders=(folder,)))


async def test_a_set_that_is_not_the_pinned_one_is_a_problem(tmp_path: Path, pictures: Pictures) -> None:
    revision = pictures.revision()
    (pictures.folder / "0.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))

    with pytest.raises(CheckError, match="the golden set cannot be fetched"):
        await fetch_golden_images(check_of("golden", revision=revision), context_of(tmp_path))


@pytest.mark.parametrize(
    ("pixels", "why"),
    [(np.full((24, 32), 9, np.uint8), "none of the classes"), (np.zeros((24, 32, 3), np.uint8), "mode RGB")],
)
async def test_a_label_map_that_is_none_is_a_problem(
    tmp_path: Path, pictures: Pictures, pixels: np.ndarray, why: str
) -> None:
    (pictures.folder / "truth-0.png").write_bytes(png(pixels))

    with pytest.raises(CheckError, match=why):
        await fetch_golden_images(check_of("golden", revision=pictures.revision()), context_of(tmp_path))


async def test_pixels_of_no_class_are_not_labelled(tmp_path: Path, pictures: Pictures) -> None:
    pixels = truth(0)
    pixels[:, 24:] = 255
    (pictures.folder / "truth-0.png").write_bytes(png(pixels))

    found, _ = await asked(tmp_path, pictures, pictures.answering(STABLE), pictures.answering(CANDIDATE))

    assert found.scores is not None
    assert found.scores.means["iou"] == (1.0, 1.0)


async def test_a_model_without_a_golden_set_has_nothing_to_ask(tmp_path: Path, pictures: Pictures) -> None:
    revision = pictures.revision().model_copy(update={"golden": None})

    with pytest.raises(CheckError, match="no golden set"):
        await fetch_golden_images(check_of("golden", revision=revision), context_of(tmp_path))


# Answers of every task

BOX = [4.0, 4.0, 16.0, 14.0]


def coin() -> bytes:
    mask = np.zeros((24, 32), np.uint8, order="F")
    mask[4:14, 4:16] = 1
    counts: bytes = coco.encode(mask)["counts"]
    return counts


def answered(**more: Any) -> dict[str, np.ndarray]:
    found = {"SIZE": [24, 32], "CLASSES": [1], "SCORES": [0.9], "BOXES": [BOX]} | more
    return {
        name: np.array(value, np.object_ if name in ("MASKS", "SEGMENTS") else None) for name, value in found.items()
    }


SEGMENTS = json.dumps([{"id": 1, "class": 1, "score": 0.9, "isThing": True, "area": 120, "box": BOX}]).encode()
ANSWERS: dict[str, dict[str, np.ndarray]] = {
    "instance": answered(MASKS=[coin()]),
    "panoptic": {"SIZE": np.array([24, 32]), **answered(MASKS=[coin()], SEGMENTS=[SEGMENTS])},
    "detection": answered(),
    "keypoints": answered(KEYPOINTS=[[[5.0, 5.0, 0.9], [9.0, 9.0, 0.8]]]),
}


def image_of(task: Any, answer: dict[str, np.ndarray]) -> GoldenImage:
    case = Case.model_validate_json(json.dumps(record(answer, "coin.png")))
    return GoldenImage(Path("coin.png"), labels_of_marks(case.expected, task), labelled=False, case=case)


@pytest.mark.parametrize("task", ANSWERS)
def test_an_answer_of_every_task_is_perfect_beside_itself_and_empty_beside_nothing(task: Any) -> None:
    image = image_of(task, ANSWERS[task])

    itself = score_objects([image.labels], [regions_of(image, ANSWERS[task], task)])
    nothing = score_objects([image.labels], [empty_regions(image, task)])

    assert itself.images == pytest.approx((1.0,))
    assert nothing.images == (0.0,)
    assert itself.means.get("ap", 1.0) == pytest.approx(1.0)
    assert ("ap" in itself.means) is (task != "panoptic")


@pytest.mark.parametrize("task", ANSWERS)
@pytest.mark.parametrize("change", ["size", "output"])
def test_an_answer_that_is_none_names_what_is_wrong(task: Any, change: str) -> None:
    image = image_of(task, ANSWERS[task])
    lacking = "BOXES" if task in ("detection", "keypoints") else "MASKS"
    without = {name: array for name, array in ANSWERS[task].items() if name != lacking}
    wrong = ANSWERS[task] | {"SIZE": np.array([9, 9])} if change == "size" else without

    with pytest.raises(GoldenError, match=r"SIZE is \(9, 9\)" if change == "size" else f"lacks {lacking}"):
        regions_of(image, wrong, task)


def test_labels_of_boxes_may_be_masks() -> None:
    marks = GoldenLabels.model_validate({"SIZE": [24, 32], "CLASSES": [1], "MASKS": [coin().decode()]})

    boxes = labels_of_marks(marks, "detection").boxes

    assert boxes is not None
    assert boxes.tolist() == [BOX]
