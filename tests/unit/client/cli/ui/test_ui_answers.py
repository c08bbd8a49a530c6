"""Answers as the page draws them: of each task, and as downloads of what is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segserve.results.masks import EncodedMask
from segserve.results.objects import (
    Detection,
    DetectionResult,
    Instance,
    InstanceResult,
    KeypointDetection,
    KeypointResult,
)
from segserve.results.result import PanopticResult, PanopticSegment, SemanticResult
from segserve.results.values import OutOfDistribution, SegmentClass
from segserve_ui.answers import KEPT, GoneAnswerError, KeptAnswers, describe_answer, without

from ...conftest import HEIGHT, WIDTH, coin_masks, decoded, png

CLASSES = (SegmentClass(0, "background"), SegmentClass(1, "coin", (255, 204, 0)), SegmentClass(2, "<b>button"))
GIVEN = ("m", "m-1", (HEIGHT, WIDTH), CLASSES)
MASKS = coin_masks()
LABELS = MASKS[0].astype(np.uint8) + 2 * MASKS[1].astype(np.uint8)
BOX = (8.0, 8.0, 33.0, 33.0)
AREAS = {"background": int((LABELS == 0).sum()), "coin": int(MASKS[0].sum()), "<b>button": int(MASKS[1].sum())}
INSTANCES = InstanceResult(
    *GIVEN,
    tuple(Instance(BOX, 0.9 - 0.4 * i, i + 1, CLASSES[i + 1].name, EncodedMask.of(m)) for i, m in enumerate(MASKS)),
)
SEGMENTS = tuple(
    PanopticSegment(BOX, 0.9 - 0.4 * i, i + 1, CLASSES[i + 1].name, i + 1, i == 0, int(m.sum()))
    for i, m in enumerate(MASKS)
)
PANOPTIC = PanopticResult(*GIVEN, SEGMENTS, png(LABELS), {})
BOXES = DetectionResult(*GIVEN, (Detection(BOX, 0.9, 1, "coin"), Detection(BOX, 0.5, 2, "<b>button")))
POINTS = KeypointResult(
    *GIVEN, tuple(KeypointDetection(BOX, 0.9, 1, "coin", np.array([[9, 9, s]], np.float32)) for s in (0.8, 0))
)


def bitmap(found: dict[str, str]) -> np.ndarray:
    return decoded({"size": [HEIGHT, WIDTH], "counts": found["mask"].encode()}).astype(bool)


def semantic(encoding: str) -> SemanticResult:
    """Return the labels as a map, or as a mask of each class."""
    masks = {index: EncodedMask.of(index == LABELS) for index in range(3)} if encoding == "rle" else {}
    return SemanticResult(*GIVEN, AREAS, None, None if encoding == "rle" else png(LABELS), masks)


@pytest.mark.parametrize("encoding", ["png", "rle"])
def test_a_semantic_answer_has_the_mask_of_each_class(encoding: str) -> None:
    described = describe_answer(semantic(encoding))

    found = {each["class"]: each for each in described["objects"]}
    assert (described["kind"], described["width"], described["height"]) == ("semantic", WIDTH, HEIGHT)
    assert (bitmap(found["coin"]) == MASKS[0]).all()
    assert (bitmap(found["<b>button"]) == MASKS[1]).all()
    assert {name: each["area"] for name, each in found.items()} == AREAS
    assert found["coin"]["colour"] == "#ffcc00"
    assert [each["background"] for each in described["classes"]] == [True, False, False]


def test_a_class_of_number_0_that_is_no_background_is_drawn() -> None:
    named = replace(semantic("png"), classes=(SegmentClass(0, "road"), *CLASSES[1:]),
                    areas={"road": AREAS["background"], **AREAS})  # fmt: skip

    (road,) = (each for each in describe_answer(named)["objects"] if each["class"] == "road")

    assert (bitmap(road) == (LABELS == 0)).all()


def test_instances_have_masks_boxes_and_colours_of_their_own() -> None:
    described = describe_answer(INSTANCES)

    assert (described["kind"], described["overlaps"]) == ("instance", True)
    for found, mask in zip(described["objects"], MASKS, strict=True):
        assert (bitmap(found) == mask).all()
        assert found["area"] == mask.sum()
        assert found["box"] == list(BOX)
    assert len({each["colour"] for each in described["objects"]}) == 2


def test_a_panoptic_answer_has_things_in_colours_of_their_own_and_stuff_in_those_of_classes() -> None:
    thing, stuff = describe_answer(PANOPTIC)["objects"]

    assert (bitmap(thing) == MASKS[0]).all()
    assert (bitmap(stuff) == MASKS[1]).all()
    classes = {each["id"]: each["colour"] for each in describe_answer(PANOPTIC)["classes"]}
    assert stuff["colour"] == classes[2]
    assert thing["colour"] != classes[1]


def test_boxes_and_keypoints_have_no_masks() -> None:
    boxes, points = describe_answer(BOXES), describe_answer(POINTS)

    assert (boxes["kind"], points["kind"]) == ("detection", "keypoints")
    assert {each["mask"] for each in boxes["objects"] + points["objects"]} == {None}
    assert points["objects"][0]["points"] == [[9.0, 9.0, pytest.approx(0.8)]]


def test_a_strange_image_is_flagged() -> None:
    strange = replace(BOXES, out_of_distribution=OutOfDistribution(2.5, 2.0))

    assert describe_answer(strange)["strange"] == {"score": 2.5, "threshold": 2.0, "flagged": True}
    assert describe_answer(BOXES)["strange"] is None


def test_an_answer_with_as_many_objects_as_the_limit_says_so() -> None:
    assert [describe_answer(each)["atLimit"] for each in (BOXES, replace(BOXES, at_limit=True))] == [False, True]


@pytest.mark.parametrize("result", [INSTANCES, PANOPTIC, BOXES], ids=["instance", "panoptic", "detection"])
def test_what_the_page_hides_is_in_no_download(result: InstanceResult | PanopticResult | DetectionResult) -> None:
    assert [each.score for each in without(result, 0.6, ())] == [0.9]
    assert [each.class_id for each in without(result, 0.0, {1})] == [2]
    assert len(without(result, 0.0, ()).to_coco()["annotations"]) == 2
    assert len(without(result, 0.6, ()).to_geojson()["features"]) == 1


def test_only_the_last_answers_are_kept() -> None:
    answers = KeptAnswers()
    names = [answers.keep(BOXES) for _ in range(KEPT + 1)]

    assert len(set(names)) == KEPT + 1
    assert answers.get(names[1]) is BOXES
    with pytest.raises(GoneAnswerError, match=f"only the last {KEPT} are"):
        answers.get(names[0])
