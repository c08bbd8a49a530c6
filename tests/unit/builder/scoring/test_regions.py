"""Golden images, labels and answers of every task as regions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from fakes.golden_pictures import CANDIDATE, Pictures, png, truth
from segserve_builder.errors import GoldenError
from segserve_builder.golden.judging import Case, GoldenLabels, record
from segserve_builder.scoring.quality import score_objects
from segserve_builder.scoring.regions import (
    GoldenImage,
    GoldenImages,
    empty_regions,
    labels_of_marks,
    read_golden_images,
    regions_of,
)
from segserve_builder.scoring.replay import replay


def images_of(pictures: Pictures) -> GoldenImages:
    revision = pictures.revision()
    assert revision.golden is not None
    return read_golden_images(pictures.folder, revision.golden.sha256, revision.pipeline)


def test_images_come_in_an_order_that_their_names_do_not_tell(pictures: Pictures) -> None:
    pictures.write(count=12)

    names = [image.case.image for image in images_of(pictures).images]

    assert names != sorted(names)
    assert len(set(names)) == 12


def test_the_order_is_the_same_on_every_server(pictures: Pictures) -> None:
    pictures.write(count=12)

    assert [image.path for image in images_of(pictures).images] == [image.path for image in images_of(pictures).images]


@pytest.mark.parametrize(
    ("pixels", "why"),
    [(np.full((24, 32), 9, np.uint8), "none of the classes"), (np.zeros((24, 32, 3), np.uint8), "mode RGB")],
)
def test_a_label_map_that_is_none_is_an_error(pictures: Pictures, pixels: np.ndarray, why: str) -> None:
    (pictures.folder / "truth-0.png").write_bytes(png(pixels))

    with pytest.raises(GoldenError, match=why):
        images_of(pictures)


def test_a_label_map_that_is_cut_off_is_an_error(pictures: Pictures) -> None:
    file = pictures.folder / "truth-0.png"
    file.write_bytes(file.read_bytes()[:60])

    with pytest.raises(GoldenError, match="cannot be read"):
        images_of(pictures)


def test_pixels_of_no_class_are_not_labelled(pictures: Pictures) -> None:
    pixels = truth(0)
    pixels[:, 24:] = 255
    (pictures.folder / "truth-0.png").write_bytes(png(pixels))
    good = pictures.answering(CANDIDATE)

    assert replay(images_of(pictures), lambda image, _: good(image), print).quality.means["iou"] == 1.0


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

    itself = score_objects([image.labels], [regions_of("coin.png", (24, 32), ANSWERS[task], task)])
    nothing = score_objects([image.labels], [empty_regions(image, task)])

    assert itself.images == pytest.approx((1.0,))
    assert nothing.images == (0.0,)
    assert itself.means.get("ap", 1.0) == pytest.approx(1.0)
    assert ("ap" in itself.means) is (task != "panoptic")


@pytest.mark.parametrize("task", ANSWERS)
@pytest.mark.parametrize("change", ["size", "output"])
def test_an_answer_that_is_none_names_what_is_wrong(task: Any, change: str) -> None:
    lacking = "BOXES" if task in ("detection", "keypoints") else "MASKS"
    without = {name: array for name, array in ANSWERS[task].items() if name != lacking}
    wrong = ANSWERS[task] | {"SIZE": np.array([9, 9])} if change == "size" else without

    with pytest.raises(GoldenError, match=r"SIZE is \(9, 9\)" if change == "size" else f"lacks {lacking}"):
        regions_of("coin.png", (24, 32), wrong, task)


def test_labels_of_boxes_may_be_masks() -> None:
    marks = GoldenLabels.model_validate({"SIZE": [24, 32], "CLASSES": [1], "MASKS": [coin().decode()]})

    boxes = labels_of_marks(marks, "detection").boxes

    assert boxes is not None
    assert boxes.tolist() == [BOX]


@pytest.mark.parametrize(("found", "at_limit"), [(149, 0), (150, 1)])
def test_all_objects_of_an_answer_count_and_answers_that_reach_the_limit_are_counted(
    tmp_path: Path, found: int, at_limit: int
) -> None:
    file = tmp_path / "coin.png"
    file.write_bytes(b"an image")
    image = replace(image_of("detection", ANSWERS["detection"]), path=file)
    boxes = np.array([[20.0, 20.0, 24.0, 24.0]] * (found - 1) + [BOX], np.float32)
    answer = answered(CLASSES=[1] * found, SCORES=np.linspace(0.9, 0.5, found), BOXES=boxes)

    scores = replay(GoldenImages("detection", (image,), {}, 150), lambda *_: answer, print)

    assert (scores.quality.means["recall"], scores.at_limit) == (1.0, at_limit)
