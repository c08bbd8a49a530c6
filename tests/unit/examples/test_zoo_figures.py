from __future__ import annotations

import contextlib
import io
from functools import cache

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from examples.zoo.evaluate import (
    Found,
    boundary,
    ground_truth,
    instance_figures,
    ious,
    islands,
    semantic_figures,
)
from examples.zoo.world import Scene, draw_scenes
from segserve.results.masks import EncodedMask
from segserve_builder.golden.calibration import expected_calibration_error, rescaled


@cache
def scenes() -> list[Scene]:
    return draw_scenes(6, 5)


def counts(mask: np.ndarray) -> bytes:
    encoded: bytes = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return encoded


def perfect(scene: Scene) -> list[Found]:
    return [Found(int(c), 0.9, counts(scene.objects == number)) for number, c in enumerate(scene.classes, 1)]


def noisy(scene: Scene, rng: np.random.Generator) -> list[Found]:
    """Objects moved a little, some lost, some of another class."""
    found = []
    for one in perfect(scene):
        mask = EncodedMask(one.counts, *scene.labels.shape).bitmap
        moved = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
        if rng.random() < 0.8:
            class_id = one.class_id if rng.random() < 0.9 else int(rng.integers(1, 5))
            found.append(Found(class_id, float(rng.random()), counts(moved)))
    return found


def test_the_truth_itself_is_a_perfect_answer() -> None:
    semantic = semantic_figures([scene.labels for scene in scenes()], scenes())
    instances = instance_figures([perfect(scene) for scene in scenes()], scenes())

    assert semantic["mIoU"] == semantic["boundary IoU"] == 1
    assert instances["AP"] == instances["AP50"] == instances["AP75"] == pytest.approx(1)


def test_the_iou_of_a_class_is_of_all_images_together() -> None:
    true = [np.array([[1, 1, 0, 0]], np.uint8), np.array([[1, 0, 0, 2]], np.uint8)]
    predicted = [np.array([[1, 0, 0, 0]], np.uint8), np.array([[1, 1, 2, 2]], np.uint8)]

    assert ious(predicted, true)[:3] == pytest.approx([2 / 5, 2 / 4, 1 / 2])


def test_the_boundary_of_a_square_is_its_frame() -> None:
    square = np.zeros((100, 100), bool)
    square[20:60, 20:60] = True

    frame = boundary(square)

    assert frame.sum() == 40 * 40 - 34 * 34  # 2 % of the diagonal of 141 pixels are 3
    assert not frame[23:57, 23:57].any()


def test_islands_are_counted_by_class_and_edge() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 2], [0, 0, 2]], np.uint8)

    assert islands([labels, np.zeros((3, 3), np.uint8)]) == (4 + 0) / 2


def test_precision_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    found = [noisy(scene, rng) for scene in scenes()]
    truth = ground_truth(scenes())
    results = [
        {
            "image_id": image_id,
            "category_id": one.class_id,
            "score": one.score,
            "segmentation": {"size": list(scenes()[image_id - 1].labels.shape), "counts": one.counts},
        }
        for image_id, image in enumerate(found, 1)
        for one in image
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()

    figures = instance_figures(found, scenes())

    assert [figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(judge.stats[:3])
    assert 0.05 < figures["AP75"] < figures["AP50"] < 0.95


def test_an_object_that_is_found_twice_is_right_once() -> None:
    from examples.zoo.calibration import scored

    scene = scenes()[0]
    twice = [*perfect(scene), *(Found(one.class_id, 0.5, one.counts) for one in perfect(scene))]

    scores, right = scored([twice], [scene])

    assert scores[right].tolist() == [0.9] * len(scene.classes)
    assert scores[~right].tolist() == [0.5] * len(scene.classes)


def test_the_calibration_error_offline_is_that_of_the_builder() -> None:
    import torch

    from examples.zoo import offline

    rng = np.random.default_rng(0)
    sure, right = rng.random(500), rng.random(500) < 0.7

    ours = offline.expected_calibration_error(torch.from_numpy(sure), torch.from_numpy(right))

    assert ours == pytest.approx(expected_calibration_error(sure, right), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scores_are_rescaled_offline_as_they_are_served(temperature: float) -> None:
    from examples.zoo import offline

    scores = np.array([0, 0.01, 0.5, 0.99, 1], np.float32)

    ours = [offline.cooled(float(score), temperature) for score in scores]

    assert ours == pytest.approx(rescaled(scores, temperature).tolist(), abs=1e-6)
