"""Agreement of two answers: plain references agree, exact small cases, and answers that cannot be compared."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segserve_builder.scoring import agreement as module
from segserve_builder.scoring.agreement import MOST_CLASSES, OTHER_CLASSES, Agreement, agreement

SIZE = (60, 80)
Answer = Mapping[str, NDArray[Any]]
Box = tuple[int, int, int, int]
Bitmap = NDArray[np.bool_]


def box_mask(box: Box, size: tuple[int, int] = SIZE) -> Bitmap:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def rle(mask: Bitmap) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts


def png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encoded(mask: Bitmap, encoding: str) -> bytes:
    if encoding == "rle":
        return rle(mask)
    if encoding == "raw":
        return mask.astype(np.uint8).tobytes()
    if encoding == "png":
        return png(mask.astype(np.uint8) * 255)
    rows, columns = np.nonzero(mask)
    x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return json.dumps([[int(n) for n in (x1, y1, x2, y1, x2, y2, x1, y2)]]).encode()


def items(*values: bytes) -> NDArray[np.object_]:
    column = np.empty(len(values), np.object_)
    column[:] = values
    return column


def instances(*found: tuple[int, Box, float], encoding: str = "rle", size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Return instances of (class, box, score), each as large as its box."""
    return {
        "SIZE": np.array(size, np.int32),
        "CLASSES": np.array([number for number, *_ in found], np.int32),
        "BOXES": np.array([box for _, box, _ in found], np.float32).reshape(-1, 4),
        "SCORES": np.array([score for *_, score in found], np.float32),
        "MASKS": items(*(encoded(box_mask(box, size), encoding) for _, box, _ in found)),
    }


def boxes(*found: tuple[int, Box, float]) -> dict[str, Any]:
    return {name: column for name, column in instances(*found).items() if name != "MASKS"}


def label_map(pixels: NDArray[np.uint8], classes: int = 3, *, as_masks: bool = False) -> dict[str, Any]:
    masks = items(*(rle(pixels == number) for number in range(classes)))
    return {
        "SIZE": np.array(pixels.shape, np.int32),
        "CLASSES": np.arange(classes, dtype=np.int32),
        "AREAS": np.zeros(classes, np.int64),
        "LABELS": items() if as_masks else items(pixels.tobytes()),
        "MASKS": masks if as_masks else items(),
    }


def panoptic(pixels: NDArray[np.uint8], classes: Mapping[int, int], score: float = 1.0) -> dict[str, Any]:
    rows = [{"id": number, "class": kind, "score": score, "box": [0, 0, 1, 1]} for number, kind in classes.items()]
    return {
        "SIZE": np.array(pixels.shape, np.int32),
        "LABELS": items(png(pixels)),
        "SEGMENTS": items(json.dumps(rows).encode()),
        "MASKS": items(),
    }


def found(stable: Answer, candidate: Answer) -> Agreement:
    result = agreement(stable, candidate)
    assert result is not None
    return result


CAR, SIGN = 1, 2
BOX = (10, 10, 30, 30)


def by_all_assignments(stable: list[tuple[int, Box, float]], candidate: list[tuple[int, Box, float]]) -> float:
    """Return the definition's value by trying every assignment."""
    shorter, longer = sorted((stable, candidate), key=len)
    best = 0.0
    for chosen in itertools.permutations(longer, len(shorter)):
        gain = 0.0
        for (one, left, first), (other, right, second) in zip(shorter, chosen, strict=True):
            a, b = box_mask(left), box_mask(right)
            gain += (one == other) * (first + second) * (a & b).sum() / (a | b).sum()
        best = max(best, gain)
    return best / sum(score for *_, score in (*stable, *candidate))


@pytest.mark.parametrize("seed", range(8))
def test_objects_agree_as_the_best_of_all_assignments_says(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def scene() -> list[tuple[int, Box, float]]:
        drawn = []
        for _ in range(rng.integers(1, 6)):
            x, y = (int(n) for n in rng.integers(0, 30, 2))
            width, height = (int(n) for n in rng.integers(10, 30, 2))
            score = float(np.float32(rng.uniform(0.3, 1)))
            drawn.append((int(rng.integers(2)), (x, y, x + width, y + height), score))
        return drawn

    stable, candidate = scene(), scene()
    expected = by_all_assignments(stable, candidate)
    assert found(instances(*stable), instances(*candidate)).value == pytest.approx(expected, rel=1e-6)
    assert found(boxes(*stable), boxes(*candidate)).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_assignments_gain_as_much_as_scipys(seed: int) -> None:
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(seed)
    gains = rng.random(rng.integers(1, 40, 2)).round(1)
    gains *= rng.random(gains.shape) < rng.random()
    rows, columns = module._assigned(gains)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist()))
    assert gains[rows, columns].sum() == pytest.approx(gains[linear_sum_assignment(-gains)].sum())


def test_the_same_answer_agrees_fully_and_nothing_agrees_with_nothing() -> None:
    answer = instances((CAR, BOX, 0.9), (SIGN, (40, 5, 50, 15), 0.6))
    assert found(answer, answer) == Agreement(1.0, {CAR: 1.0, SIGN: 1.0})
    assert found(instances(), instances()) == Agreement(1.0)
    assert found(boxes(), boxes()) == Agreement(1.0)


def test_empty_answers_of_a_promptable_model_say_nothing() -> None:
    """It finds nothing in an image without a prompt."""
    empty = {**instances(), "EMBEDDING_ID": items(b"sam-1")}

    assert agreement(empty, empty) is None


def test_objects_beyond_those_that_are_compared_are_counted() -> None:
    many = boxes(*((CAR, (x, y, x + 1, y + 1), 0.9) for x in range(50) for y in range(30)))

    assert (found(many, boxes((CAR, BOX, 0.9))).left_out, found(many, many).left_out) == (500, 1000)
    assert found(many, boxes()).left_out == 500


def test_an_instance_that_only_one_side_has_costs_its_score_and_is_counted_by_its_size() -> None:
    small, medium = (CAR, (50, 40, 60, 50), 0.3), (CAR, (0, 0, 40, 40), 0.9)
    result = found(instances(medium, small), instances(medium))
    assert result.value == pytest.approx(1.8 / 2.1)
    assert (result.stable_only, result.candidate_only) == ((1, 0, 0), (0, 0, 0))
    assert found(instances(medium), instances(medium, small)).candidate_only == (1, 0, 0)
    assert found(instances(medium), instances()).stable_only == (0, 1, 0)


def test_an_instance_called_otherwise_is_no_partner() -> None:
    result = found(instances((CAR, BOX, 0.9)), instances((SIGN, BOX, 0.9)))
    assert result == Agreement(0.0, {CAR: 0.0, SIGN: 0.0}, (1, 0, 0), (1, 0, 0))


def test_a_mask_shifted_by_a_quarter_of_its_width_has_the_iou_of_both() -> None:
    result = found(instances((CAR, BOX, 0.9)), instances((CAR, (15, 10, 35, 30), 0.9)))
    assert result.value == pytest.approx(15 / 25)


@pytest.mark.parametrize("encoding", ["rle", "png", "raw", "polygons"])
def test_masks_are_read_in_every_encoding(encoding: str) -> None:
    stable = instances((CAR, BOX, 0.9), encoding=encoding)
    candidate = instances((CAR, (15, 10, 35, 30), 0.9), encoding=encoding)
    assert found(stable, candidate).value == pytest.approx(15 / 25)


def test_what_a_request_did_not_ask_for_is_not_compared() -> None:
    only_masks = {"BOXES": np.zeros((0, 4)), "SCORES": np.zeros(0), "CLASSES": np.zeros(0, np.int32)}
    stable, candidate = instances((CAR, BOX, 0.9)), instances((SIGN, BOX, 0.5))
    assert found({**stable, **only_masks}, {**candidate, **only_masks}).value == 1


@pytest.mark.parametrize("as_masks", [False, True])
def test_label_maps_agree_by_the_mean_iou_of_classes(as_masks: bool) -> None:
    rng = np.random.default_rng(0)
    stable, candidate = (np.kron(rng.integers(0, 3, (6, 8)), np.ones((10, 10))).astype(np.uint8) for _ in range(2))
    ious = {
        number: ((stable == number) & (candidate == number)).sum() / ((stable == number) | (candidate == number)).sum()
        for number in range(3)
    }
    result = found(label_map(stable, as_masks=as_masks), label_map(candidate, as_masks=as_masks))
    assert result.classes == pytest.approx(ious)
    assert result.value == pytest.approx(np.mean(list(ious.values())))


def test_a_class_lost_costs_a_map_its_share_and_a_stray_pixel_nearly_nothing() -> None:
    stable = np.zeros((200, 200), np.uint8)
    stable[:100] = 1
    stray, lost = stable.copy(), stable.copy()
    stray[150, 150], lost[:100] = 2, 0
    assert found(label_map(stable), label_map(stray)).value > 0.998
    assert found(label_map(stable), label_map(lost)).value == pytest.approx(0.5 / 2)


def test_classes_beyond_two_hundred_are_joined() -> None:
    pixels = np.arange(250, dtype=np.uint8).reshape(10, 25).repeat(8, 0).repeat(8, 1)
    result = found(label_map(pixels, 250), label_map(pixels, 250))
    assert len(result.classes) == MOST_CLASSES + 1
    assert result.classes[OTHER_CLASSES] == 1


def test_panoptic_segments_agree_by_the_panoptic_quality() -> None:
    stable, candidate = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    stable[:, :20], stable[:, 20:] = 1, 2
    candidate[:, :16], candidate[:, 16:] = 7, 9
    result = found(panoptic(stable, {1: CAR, 2: SIGN}), panoptic(candidate, {7: CAR, 9: SIGN}))
    assert result.classes == pytest.approx({CAR: 16 / 20, SIGN: 20 / 24})
    assert result.value == pytest.approx((16 / 20 + 20 / 24) / 2)


def test_segments_that_share_less_than_half_do_not_match() -> None:
    stable, candidate = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    stable[:, :20], candidate[:, 9:29] = 1, 1
    result = found(panoptic(stable, {1: CAR}), panoptic(candidate, {1: CAR}))
    assert (result.value, result.stable_only, result.candidate_only) == (0.0, (1, 0, 0), (1, 0, 0))


def points(*xy: tuple[float, float], score: float = 1.0) -> list[list[float]]:
    return [[x, y, score] for x, y in xy]


def test_keypoints_agree_as_little_as_their_points_do() -> None:
    stable = {**boxes((CAR, BOX, 0.9)), "KEYPOINTS": np.array([points((12, 12), (20, 20))])}
    moved = {**stable, "KEYPOINTS": np.array([points((12, 12), (28, 20))])}
    area, sigma = 20 * 20 * 0.53, 0.05
    similar = (1 + np.exp(-(8**2) / (2 * sigma) ** 2 / area / 2)) / 2
    assert found(stable, stable).value == pytest.approx(1)
    assert found(stable, moved).value == pytest.approx(similar)


def test_a_point_that_neither_side_is_sure_of_may_wander() -> None:
    stable = {**boxes((CAR, BOX, 0.9)), "KEYPOINTS": np.array([[[12, 12, 1.0], [20, 20, 0.01]]])}
    moved = {**stable, "KEYPOINTS": np.array([[[12, 12, 1.0], [28, 20, 0.01]]])}
    assert found(stable, moved).value > 0.98


@pytest.mark.parametrize(
    "candidate",
    [
        instances((CAR, BOX, 0.9), size=(61, 80)),
        label_map(np.zeros(SIZE, np.uint8)),
        panoptic(np.zeros(SIZE, np.uint8), {}),
        {},
        {**boxes((CAR, BOX, 0.9)), "BOXES": np.zeros((0, 4))},
    ],
    ids=["another size", "a map", "segments", "nothing", "neither masks nor boxes"],
)
def test_answers_of_another_kind_are_not_compared(candidate: Answer) -> None:
    assert agreement(instances((CAR, BOX, 0.9)), candidate) is None


@pytest.mark.parametrize("answer", [label_map(np.zeros(SIZE, np.uint8)), panoptic(np.zeros(SIZE, np.uint8), {})])
def test_a_map_that_was_not_asked_for_is_not_compared(answer: Answer) -> None:
    empty = {**answer, "LABELS": items(), "SEGMENTS": items()} if "SEGMENTS" in answer else {**answer}
    empty["LABELS"] = items()
    assert agreement(empty, empty) is None


MALFORMED: dict[str, dict[str, Any]] = {
    "a mask of another size": {"MASKS": items(rle(np.ones((4, 4), bool)))},
    "a mask that is none": {"MASKS": items(b"\x00")},
    "no score": {"SCORES": np.zeros(2)},
    "far polygons": {"MASKS": items(b"[[0, 0, 1e12, 0, 1e12, 1e12]]")},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_candidates_answer_that_cannot_be_read_agrees_in_nothing_and_stables_is_not_compared(
    change: dict[str, Any],
) -> None:
    answer = instances((CAR, BOX, 0.9))
    assert agreement(answer, {**answer, **change}) == Agreement(0.0)
    assert agreement({**answer, **change}, answer) is None


def test_scores_and_boxes_that_are_no_numbers_are_no_error() -> None:
    answer, nothing = boxes((CAR, BOX, 0.9)), np.full((1, 4), np.nan)
    assert found(answer, {**answer, "BOXES": nothing}).value == 0
    assert found(answer, {**answer, "SCORES": np.array([np.nan])}).value == 1


def test_masks_that_would_take_too_long_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, drawn = instances((CAR, BOX, 0.9)), instances((CAR, BOX, 0.9), encoding="png")
    monkeypatch.setattr(module, "MOST_RUN_BYTES", 1)
    monkeypatch.setattr(module, "MOST_PIXELS", 1)
    assert agreement(answer, answer) is None
    assert agreement(drawn, drawn) is None


def test_three_hundred_objects_of_one_class_are_matched() -> None:
    many = [(CAR, (x, y, x + 3, y + 3), 0.5 + 0.001 * x) for x in range(0, 80, 4) for y in range(0, 60, 4)]
    result = found(boxes(*many), boxes(*reversed(many)))
    assert (result.value, result.stable_only) == (pytest.approx(1.0), (0, 0, 0))
