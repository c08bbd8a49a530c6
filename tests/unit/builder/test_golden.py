"""Golden sets: what reads, and which answers pass."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pycocotools import mask as coco
from pydantic import ValidationError

from segserve_builder.errors import GoldenError
from segserve_builder.golden.judging import (
    Case,
    GoldenTolerance,
    builtin_image,
    check_builtin,
    compare,
    load,
    record,
)
from segserve_builder.spec.model_spec import Input
from segserve_common import MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = 40, 60
BOXES = [(2, 3, 22, 23), (30, 5, 50, 35), (4, 26, 14, 38)]


def rle(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    mask = np.zeros(size, np.uint8, order="F")
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 1
    return coco.encode(mask)["counts"]


def instances(boxes=BOXES, scores=(0.9, 0.8, 0.7), classes=(1, 1, 2)) -> dict[str, Any]:
    count = len(boxes)
    return {
        "REVISION": np.array([b"coins-0123456789"], np.object_),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "BOXES": np.array(boxes, np.float32).reshape(count, 4),
        "SCORES": np.array(scores[:count], np.float32),
        "CLASSES": np.array(classes[:count], np.int32),
        "MASKS": np.array([rle(box) for box in boxes], np.object_),
    }


def semantic(*masks: bytes) -> dict[str, Any]:
    return {
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "CLASSES": np.arange(len(masks), dtype=np.int32),
        "AREAS": np.zeros(len(masks), np.int64),
        "CONFIDENCE": np.ones(len(masks), np.float32),
        "MASKS": np.array(list(masks), np.object_),
        "LABELS": np.array([], np.object_),
    }


def case_of(answer: dict[str, Any], **tolerance: float) -> Case:
    recorded = record(answer, "coins.png", GoldenTolerance(**tolerance))
    return Case.model_validate_json(json.dumps(recorded))


def test_boxes_of_any_fraction_equal_themselves() -> None:
    """In floating point the IoU of a box with itself is not always 1."""
    boxes = [tuple(np.float32(edge) * np.float32(1.0123457) + np.float32(0.1) for edge in box) for box in BOXES]
    answer = changed(BOXES=np.array(boxes, np.float32), SCORES=np.array([0.97182941, 1 / 3, 0.1], np.float32))

    compare(case_of(answer, iou=1.0, score=0.0), answer)


def test_an_empty_mask_equals_itself() -> None:
    empty = instances(((0, 0, 0, 0),), (0.9,), (1,))

    compare(case_of(empty), empty)


def test_the_order_of_instances_does_not_matter() -> None:
    shuffled = {
        name: array[::-1] if name in ("BOXES", "SCORES", "CLASSES", "MASKS") else array
        for name, array in instances().items()
    }

    compare(case_of(instances()), shuffled)


def changed(**changes: Any) -> dict[str, Any]:
    return {**instances(), **changes}


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        pytest.param(instances(BOXES[:2]), r"SCORES has 2 instances; expected 3", id="one is missing"),
        pytest.param(instances(scores=(0.9, 0.8, 0.5)), r"instance 2 of class 2: SCORES is 0\.5", id="score"),
        pytest.param(instances(classes=(1, 1, 1)), r"instance 2 of class 2: MASKS: best IoU 0", id="class"),
        pytest.param(
            instances([BOXES[0], BOXES[1], (4, 26, 14, 37)]), r"MASKS: best IoU 0\.9167; at least 0\.95", id="mask"
        ),
        pytest.param(
            changed(BOXES=np.array([*BOXES[:2], (4, 20, 14, 38)], np.float32)), r"BOXES: IoU 0\.6667", id="box"
        ),
        pytest.param(changed(SIZE=np.array([1, 2])), r"SIZE is \(1, 2\); expected \(40, 60\)", id="size"),
        pytest.param(changed(SCORES=np.array([0.9, np.nan, 0.7])), r"SCORES holds NaN", id="NaN"),
        pytest.param(changed(MASKS=np.array([], np.object_)), r"MASKS has 0 items; expected 3", id="no masks"),
        pytest.param({"SIZE": np.array([HEIGHT, WIDTH])}, r"lacks SCORES; it has SIZE", id="no scores"),
    ],
)
def test_an_answer_outside_its_tolerance_fails_with_what_was_seen(answer: dict[str, Any], seen: str) -> None:
    with pytest.raises(GoldenError, match=rf"^coins\.png: .*{seen}"):
        compare(case_of(instances(), iou=0.95, score=0.01), answer)


def test_one_answer_does_not_serve_for_two_expected_instances() -> None:
    twice = [BOXES[0], BOXES[0], BOXES[2]]
    far = [BOXES[0], BOXES[1], BOXES[2]]

    with pytest.raises(GoldenError, match="instance 1 of class 1: MASKS"):
        compare(case_of(instances(twice)), instances(far))


def test_a_semantic_answer_is_judged_class_by_class() -> None:
    background, coin, nothing = rle((0, 0, 60, 20)), rle((10, 20, 30, 40)), rle()
    case = case_of(semantic(background, coin, nothing))

    compare(case, semantic(background, coin, nothing))
    with pytest.raises(GoldenError, match=r"MASKS of class 1: IoU 0\.9000; at least 0\.99"):
        compare(case, semantic(background, rle((10, 20, 30, 38)), nothing))
    with pytest.raises(GoldenError, match=r"MASKS of class 2: IoU 0\.0000"):
        compare(case, semantic(background, coin, rle((0, 0, 1, 1))))
    with pytest.raises(GoldenError, match="CLASSES is"):
        compare(case, semantic(background, coin))


def test_a_class_that_is_gone_is_named_before_the_one_that_took_its_place() -> None:
    background, coin, box = rle((0, 0, 60, 20)), rle((10, 20, 30, 40)), rle((40, 20, 50, 40))
    case, grown = case_of(semantic(background, coin, box)), rle((10, 20, 50, 40))

    with pytest.raises(GoldenError, match=r"MASKS of class 2: IoU 0\.0000; .*: nothing is 'box'"):
        compare(case, semantic(background, grown, rle()), {0: "background", 1: "coin", 2: "box"})


def written(folder: Path, text: str, *images: str) -> Path:
    (folder / "golden.json").write_text(text)
    for image in images:
        (folder / image).write_bytes(b"")
    return folder


def test_a_set_is_read_with_its_default_tolerances(tmp_path: Path) -> None:
    plain = record(instances(), "a.png")
    del plain["tolerance"]

    golden = load(written(tmp_path, json.dumps({"cases": [plain]}), "a.png"))

    assert golden.cases[0].tolerance == GoldenTolerance(iou=0.99, score=0.01)


RECORDED = record(instances(), "a.png")


@pytest.mark.parametrize(
    ("plain", "seen"),
    [
        pytest.param({"cases": []}, "cases", id="no case"),
        pytest.param({"cases": [RECORDED | {"image": "../a.png"}]}, "leaves the golden folder", id="outside"),
        pytest.param({"cases": [RECORDED | {"image": "/etc/passwd"}]}, "leaves the golden folder", id="absolute"),
        pytest.param({"cases": [RECORDED | {"tolerance": {"iou": 0}}]}, "tolerance.iou", id="tolerance"),
        pytest.param({"cases": [RECORDED | {"more": 1}]}, "more", id="unknown key"),
        pytest.param(
            {"cases": [RECORDED | {"expected": RECORDED["expected"] | {"CLASSES": [1]}}]}, "of one length", id="lengths"
        ),
        pytest.param({"cases": [RECORDED | {"image": "b.png"}]}, "not in the folder: b.png", id="missing image"),
    ],
)
def test_a_set_that_is_wrong_says_where(tmp_path: Path, plain: dict[str, Any], seen: str) -> None:
    with pytest.raises(GoldenError, match=seen):
        load(written(tmp_path, json.dumps(plain), "a.png"))


def test_a_folder_without_a_set_is_a_golden_error(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="No such file"):
        load(tmp_path)


def test_the_builtin_image_is_a_small_png() -> None:
    assert builtin_image().startswith(b"\x89PNG")
    assert len(builtin_image()) < 20_000


def test_a_finite_answer_that_repeats_is_accepted() -> None:
    check_builtin(instances(), instances())


@pytest.mark.parametrize(
    ("second", "seen"),
    [
        pytest.param(instances(scores=(0.9, 0.8, 0.6)), "SCORES differs", id="score"),
        pytest.param(changed(MASKS=instances()["MASKS"][::-1]), "MASKS differs", id="masks"),
        pytest.param(instances(BOXES[:1]), "BOXES differs", id="count"),
        pytest.param({}, "then with", id="outputs"),
    ],
)
def test_an_answer_that_does_not_repeat_is_refused(second: dict[str, Any], seen: str) -> None:
    with pytest.raises(GoldenError, match=seen):
        check_builtin(instances(), second)


def test_an_answer_that_is_not_finite_is_refused() -> None:
    answer = changed(SCORES=np.array([np.inf, 0, 0], np.float32))

    with pytest.raises(GoldenError, match="NaN or infinity"):
        check_builtin(answer, answer)


def test_an_answer_may_be_as_large_as_the_largest_image_that_a_resource_allows() -> None:
    assert Input(max_pixels=MAX_IMAGE_PIXELS).max_pixels == MAX_IMAGE_PIXELS
    with pytest.raises(ValidationError):
        Input(max_pixels=MAX_IMAGE_PIXELS + 1)
