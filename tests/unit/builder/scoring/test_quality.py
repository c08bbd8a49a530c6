"""Quality against labels: COCO's own code agrees, and the numbers say what went wrong."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_erosion

from segserve_builder.scoring.quality import Quality, Regions, score_objects, score_samples, score_semantic

SIZE = (60, 80)
ROAD, CAR, SIGN = 0, 1, 2


def rle(mask: NDArray[np.bool_]) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts


def box_mask(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def objects(*found: tuple[int, tuple[int, int, int, int], float]) -> Regions:
    """Return instances of (class, box, score), each as large as its box."""
    return Regions(
        SIZE,
        tuple(number for number, *_ in found),
        tuple(rle(box_mask(*box)) for _, box, _ in found),
        np.array([box for _, box, _ in found], float).reshape(-1, 4),
        np.array([score for *_, score in found]),
    )


def label_map(pixels: NDArray[np.uint8]) -> Regions:
    present = np.unique(pixels).tolist()
    return Regions(SIZE, tuple(present), tuple(rle(pixels == number) for number in present))


def scene(seed: int, count: int = 12) -> Regions:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, (60, 40), (count, 2))
    sides = rng.integers(4, 20, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return objects(*((int(rng.integers(3)), tuple(map(int, box)), float(rng.random())) for box in boxes))


def shaken(regions: Regions, seed: int) -> Regions:
    """Return an answer: objects that are moved, lost, doubled or called otherwise."""
    rng = np.random.default_rng(seed)
    found = []
    for number, box in zip(regions.classes, regions.boxes.astype(int).tolist(), strict=True):
        for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
            moved = np.clip(np.array(box) + rng.integers(-2, 3, 4), 0, 79)
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            wrong = rng.random() < 0.1
            found.append((int(rng.integers(3)) if wrong else number, tuple(map(int, moved)), float(rng.random())))
    return objects(*found)


def oracle(labels: list[Regions], answers: list[Regions], kind: str) -> float:
    """Return AP by pycocotools' own evaluation."""
    annotations, results = [], []
    for image, (label, answer) in enumerate(zip(labels, answers, strict=True), 1):
        for regions, to in ((label, annotations), (answer, results)):
            for index, number in enumerate(regions.classes):
                x1, y1, x2, y2 = regions.boxes[index].tolist()
                entry = {"id": len(to) + 1, "image_id": image, "category_id": number + 1, "iscrowd": 0}
                entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(regions.scores[index])}
                mask = {"size": list(SIZE), "counts": regions.masks[index]}
                if regions.points is not None:
                    entry |= {"keypoints": regions.points[index].ravel().tolist(), "num_keypoints": 17}
                to.append(entry | {"segmentation": mask, "area": float(coco.area(mask))})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": image + 1, "height": 60, "width": 80} for image in range(len(labels))],
            "categories": [{"id": number + 1} for number in range(3)],
            "annotations": annotations,
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_average_precision_is_that_of_coco(kind: str, seed: int) -> None:
    labels = [scene(seed * 100 + image) for image in range(6)]
    answers = [shaken(label, seed * 100 + image) for image, label in enumerate(labels)]
    if kind == "bbox":
        seen = score_objects(*([replace(one, masks=None) for one in part] for part in (labels, answers)))
    else:
        seen = score_objects(labels, answers)

    assert seen.means["ap"] == pytest.approx(oracle(labels, answers, kind), abs=1e-9)


def test_average_precision_of_keypoints_is_that_of_coco() -> None:
    rng = np.random.default_rng(1)
    labels, answers = [], []
    for seed in range(6):
        label = scene(seed, count=6)
        points = rng.uniform(0, 60, (6, 17, 3))
        points[..., 2] = rng.integers(0, 3, (6, 17))
        labels.append(replace(label, points=points))
        answers.append(replace(label, points=points + rng.normal(0, 1.5, (6, 17, 1)), scores=rng.random(6)))

    seen = score_objects(labels, answers).means["ap"]

    assert 0.05 < seen < 0.95
    assert seen == pytest.approx(oracle(labels, answers, "keypoints"), abs=1e-9)


@pytest.mark.parametrize("count", [17, 5])
def test_keypoints_are_compared_by_their_similarity(count: int) -> None:
    points = np.random.default_rng(0).uniform(10, 50, (1, count, 3))
    points[..., 2] = 2
    label = replace(objects((CAR, (10, 10, 50, 50), 1.0)), masks=None, points=points)
    near, far = points + np.array([0.1, 0.1, 0]), points + np.array([30, 0, 0])

    assert score_objects([label], [replace(label, points=points)]).means == {"iou": 1.0, "recall": 1.0, "ap": 1.0}
    assert 0.9 < score_objects([label], [replace(label, points=near)]).means["iou"] < 1
    assert score_objects([label], [replace(label, points=far)]).means["recall"] == 0


def test_a_missed_and_a_false_object_cost_half_an_object_each() -> None:
    label = objects((CAR, (0, 0, 10, 10), 1), (CAR, (20, 0, 30, 10), 1))
    one_missed = objects((CAR, (0, 0, 10, 10), 1))
    one_more = objects((CAR, (0, 0, 10, 10), 1), (CAR, (20, 0, 30, 10), 1), (SIGN, (50, 0, 60, 10), 1))

    assert score_objects([label], [one_missed]).images == pytest.approx((1 / 1.5,))
    assert score_objects([label], [one_more]).images == pytest.approx((2 / 2.5,))


def test_an_image_of_nothing_is_right_without_an_answer_and_wrong_with_one() -> None:
    nothing = objects()

    assert score_objects([nothing], [nothing]).images == (1.0,)
    assert score_objects([nothing], [objects((CAR, (0, 0, 9, 9), 1))]).images == (0.0,)


def test_a_lost_rare_class_is_seen_in_its_own_number_and_hardly_in_the_pixels() -> None:
    truth = np.zeros(SIZE, np.uint8)
    truth[:30] = CAR
    truth[0:3, 0:3] = SIGN
    lost = np.where(truth == SIGN, CAR, truth).astype(np.uint8)

    seen = score_semantic([label_map(truth)], [label_map(lost)])

    assert seen.classes[SIGN] == 0
    assert seen.classes[CAR] > 0.99
    assert seen.means["recall"] == pytest.approx(2 / 3, abs=0.01)


def test_iou_of_a_class_is_that_of_all_pixels_together() -> None:
    truth = np.zeros(SIZE, np.uint8)
    small, large = truth.copy(), truth.copy()
    small[0:2, 0:2] = CAR
    large[0:40, 0:40] = CAR
    half = large.copy()
    half[0:20] = ROAD

    seen = score_semantic([label_map(small), label_map(large)], [label_map(small), label_map(half)])

    assert seen.classes[CAR] == pytest.approx((4 + 800) / (4 + 1600))
    assert seen.images[0] == 1


@pytest.mark.parametrize("kind", ["semantic", "objects"])
def test_a_class_that_only_answers_show_counts_as_nothing_right_where_it_is_asked_for(
    kind: Literal["semantic", "objects"],
) -> None:
    labels = [objects((0, (0, 0, 8, 8), 0.9))]
    answers = [objects((0, (0, 0, 8, 8), 0.9), (1, (20, 20, 28, 28), 0.8))]

    (left_out,) = score_samples(kind, labels, answers, [[0]])
    (counted,) = score_samples(kind, labels, answers, [[0]], false_classes=True)

    assert (left_out.classes, left_out.means["iou"]) == ({0: 1.0}, 1.0)
    assert (counted.classes, counted.means["iou"]) == ({0: 1.0, 1: 0.0}, 0.5)


@pytest.mark.parametrize("labelled", [99, 100, 101, 192])
def test_the_limit_of_objects_never_bounds_what_can_be_reached(labelled: int) -> None:
    boxes = [(x, y, x + 4, y + 4) for x in range(0, 80, 5) for y in range(0, 60, 5)]
    every = objects(*((CAR, box, 0.9) for box in boxes))
    known = objects(*((CAR, box, 0.9) for box in boxes[:labelled]))

    (perfect,) = score_samples("objects", [known], [known], [[0]])
    (limited,) = score_samples("objects", [known], [every], [[0]])
    (whole,) = score_samples("objects", [known], [every], [[0]], most=None)

    assert (perfect.classes, perfect.means["ap"], perfect.means["recall"]) == ({CAR: 1.0}, 1.0, 1.0)
    assert limited.classes == {CAR: pytest.approx(labelled / ((labelled + (100 if labelled <= 100 else 192)) / 2))}
    assert whole.classes == {CAR: pytest.approx(labelled / ((labelled + 192) / 2))}


def test_half_of_a_region_matches_it_unless_more_than_half_is_asked_for() -> None:
    labels, answers = [objects((CAR, (0, 0, 8, 8), 0.9))], [objects((CAR, (0, 0, 8, 4), 0.9))]

    (coco_s,) = score_samples("objects", labels, answers, [[0]])
    (kirillov_s,) = score_samples("objects", labels, answers, [[0]], above_match=True)

    assert (coco_s.classes, kirillov_s.classes) == ({CAR: 0.5}, {CAR: 0.0})


def test_pixels_without_a_label_count_for_nothing() -> None:
    truth = np.zeros(SIZE, np.uint8)
    truth[:30] = CAR
    answer = truth.copy()
    answer[:, 70:] = SIGN
    within = np.ones(SIZE, bool)
    within[:, 70:] = False

    assert score_semantic([replace(label_map(truth), counted=rle(within))], [label_map(answer)]).images == (1.0,)
    assert score_semantic([label_map(truth)], [label_map(answer)]).images[0] < 0.7


@pytest.mark.parametrize("kind", ["semantic", "objects"])
def test_a_sample_of_the_images_has_the_quality_of_those_images_alone(kind: Literal["semantic", "objects"]) -> None:
    if kind == "semantic":
        labels = [label_map(np.random.default_rng(seed).integers(0, 3, SIZE, np.uint8)) for seed in range(4)]
        answers, score = labels[1:] + labels[:1], score_semantic
    else:
        labels = [scene(seed) for seed in range(4)]
        answers, score = [shaken(label, seed) for seed, label in enumerate(labels)], score_objects
    samples = [[0, 1, 2, 3], [2, 2, 0, 3]]

    found = list(score_samples(kind, labels, answers, samples))

    for quality, sample in zip(found, samples, strict=True):
        own: Quality = score([labels[index] for index in sample], [answers[index] for index in sample])
        assert quality == own


def test_answers_of_another_size_are_refused() -> None:
    label = label_map(np.zeros(SIZE, np.uint8))

    with pytest.raises(ValueError, match=r"\(30, 40\)"):
        score_semantic([label], [replace(label, size=(30, 40))])


def test_more_objects_than_coco_takes_are_the_surest() -> None:
    label = objects((CAR, (0, 0, 20, 20), 1))
    crowd = [(CAR, (40, 40, 45, 45), 0.9)] * 100 + [(CAR, (0, 0, 20, 20), 0.1)]

    assert score_objects([label], [objects(*crowd)]).means["recall"] == 0


def test_calibration_error_is_how_far_scores_are_from_the_share_of_right_objects() -> None:
    box, beside = (10, 10, 30, 30), (50, 10, 70, 30)
    labels = [objects((CAR, box, 1.0))] * 100
    # Of 100 objects with a score of 0.85, 85 are right; 100 others with 0.35 are all wrong.
    right = [objects((CAR, box, 0.85), (CAR, beside, 0.35))] * 85
    wrong = [objects((SIGN, box, 0.85), (CAR, beside, 0.35))] * 15

    assert score_objects(labels, [*right, *wrong]).means["ece"] == pytest.approx(0.35 / 2)


def test_scores_that_are_shares_of_right_objects_have_no_calibration_error() -> None:
    labels = [objects((CAR, (10, 10, 30, 30), 1.0))] * 100
    right = [objects((CAR, (10, 10, 30, 30), 0.7))] * 70

    assert score_objects(labels, [*right, *[objects((CAR, (50, 10, 70, 30), 0.7))] * 30]).means["ece"] < 1e-9


def test_few_objects_tell_nothing_about_calibration() -> None:
    label = objects((CAR, (10, 10, 30, 30), 1.0))

    assert "ece" not in score_objects([label] * 99, [label] * 99).means
    assert "ece" in score_objects([label] * 100, [label] * 100).means


def test_objects_are_as_alike_as_the_lesser_of_their_masks_and_their_bands() -> None:
    labels, answers = [scene(3), scene(4)], [shaken(scene(3), 5), shaken(scene(4), 6)]

    def band(mask: bytes) -> NDArray[np.bool_]:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of pycocotools with numpy 2
            pixels = coco.decode({"size": SIZE, "counts": mask}).astype(bool)
        return pixels & ~binary_erosion(pixels, np.ones((5, 5)))  # 2 % of a diagonal of 100 pixels to each side

    expected = []
    for number in sorted({each for label in labels for each in label.classes}):
        shared = count = 0.0
        for label, answer in zip(labels, answers, strict=True):
            true = [mask for each, mask in zip(label.classes, label.masks, strict=True) if each == number]
            own = [(score, mask) for each, score, mask in zip(answer.classes, answer.scores, answer.masks, strict=True)
                   if each == number]  # fmt: skip
            count += len(true) + len(own)
            for _, mask in sorted(own, key=lambda each: -each[0]):
                alike = []
                for other in true:
                    left, right = band(mask), band(other)
                    outlines = (left & right).sum() / (left | right).sum()
                    sides = [{"size": SIZE, "counts": each} for each in (mask, other)]
                    alike.append(min(outlines, coco.iou(sides[:1], sides[1:], [0])[0, 0]))
                if alike and max(alike) >= 0.5:
                    best = len(alike) - 1 - int(np.argmax(alike[::-1]))
                    shared += alike[best]
                    true.pop(best)
        expected.append(2 * shared / count)

    (found,) = score_samples("objects", labels, answers, [[0, 1]], outlines=True)

    assert list(found.outlines.values()) == pytest.approx(expected)
    assert found.means["boundaryIou"] == pytest.approx(np.mean(expected))
    assert 0 < found.means["boundaryIou"] < found.means["iou"]


def test_boxes_have_no_outlines() -> None:
    boxes = [replace(scene(3), masks=None)]

    (found,) = score_samples("objects", boxes, boxes, [[0]], outlines=True)

    assert "boundaryIou" not in found.means
