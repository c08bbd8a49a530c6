"""The stage that makes instances of a label map: what it keeps, how it scores, and what a request may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.instances import InstancesFromLabels
from segserve_builder.values import Instances, LabelMap, Logits, ResizeTransform

HEIGHT, WIDTH = 60, 90


def label_map(labels: np.ndarray, things: frozenset[int] = frozenset(), certainty: float = 2.0) -> LabelMap:
    """A label map of three classes whose logits are `certainty` for the pixel's class, else 0."""
    values = (np.arange(3)[:, None, None] == labels).astype(np.float32) * np.float32(certainty)
    return LabelMap(labels, Logits(values, ResizeTransform.of(*labels.shape), things=things))


def scene() -> np.ndarray:
    """Two touching discs and a square of class 1, a small square of class 2."""
    labels, (rows, columns) = np.zeros((HEIGHT, WIDTH), np.uint8), np.mgrid[:HEIGHT, :WIDTH]
    for x in (20, 44):
        labels[(rows - 25) ** 2 + (columns - x) ** 2 <= 169] = 1
    labels[40:55, 65:85] = 1
    labels[2:6, 70:75] = 2
    return labels


def bitmaps(value: Instances) -> list[np.ndarray]:
    return [decode_bitmap(counts, value.height, value.width) for counts in value.masks]


def made(labels: LabelMap, request: RequestOptions | None = None, **options: Any) -> Instances:
    return InstancesFromLabels(**options)(labels, request or RequestOptions())


def test_masks_share_no_pixel_and_are_all_of_their_class_together() -> None:
    labels = scene()

    cut = made(label_map(labels), min_distance=8)

    assert sorted(cut.classes.tolist()) == [1, 1, 1, 2]
    for label in (1, 2):
        masks = [mask for mask, number in zip(bitmaps(cut), cut.classes, strict=True) if number == label]
        assert np.array_equal(np.sum(masks, axis=0), labels == label)


def test_boxes_are_the_least_around_masks() -> None:
    cut = made(label_map(scene()), min_distance=8)

    for box, mask in zip(cut.boxes.tolist(), bitmaps(cut), strict=True):
        y, x = np.nonzero(mask)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_objects_that_touch_are_one_instance_unless_a_least_distance_is_given() -> None:
    labels = label_map(scene())

    assert [len(made(labels, min_distance=least).scores) for least in (None, 8)] == [3, 4]


def test_things_are_instances_and_classes_say_otherwise() -> None:
    labels = scene()

    assert set(made(label_map(labels)).classes.tolist()) == {1, 2}
    assert set(made(label_map(labels, things=frozenset({2}))).classes.tolist()) == {2}
    assert set(made(label_map(labels, things=frozenset({2})), classes=(1, 4000)).classes.tolist()) == {1}
    assert set(made(label_map(labels), classes=(0,)).classes.tolist()) == {0}


def test_scores_are_mean_probabilities_and_the_best_comes_first() -> None:
    labels = scene()
    value = label_map(labels)
    value.logits.values[1, 40:55, 65:85] = 5.0
    value.logits.values[2, 2:6, 70:75] = np.linspace(0.5, 4.0, 5)

    cut = made(value, min_distance=8)

    likely = np.exp(value.logits.values) / np.exp(value.logits.values).sum(axis=0)
    means = [likely[label][mask > 0].mean() for label, mask in zip(cut.classes, bitmaps(cut), strict=True)]
    assert cut.scores.tolist() == pytest.approx(means, abs=1e-5)
    assert cut.scores.tolist() == sorted(cut.scores.tolist(), reverse=True)


def test_small_and_unlikely_objects_are_dropped_and_a_request_may_override_the_score() -> None:
    value = label_map(scene())
    value.logits.values[2, 2:6, 70:75] = 0.5

    assert set(made(value, min_area=21).classes.tolist()) == {1}
    assert set(made(value, threshold=0.6).classes.tolist()) == {1}
    assert set(made(value, RequestOptions(score_threshold=0.1), threshold=0.6).classes.tolist()) == {1, 2}
    assert made(value, RequestOptions(score_threshold=1.0)).masks == ()


def test_what_is_cut_off_and_too_small_is_dropped() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[5:35, 5:35] = 1
    labels[18:22, 35:50] = 1  # a thin arm, which a watershed cuts off

    whole, cut = made(label_map(labels), min_distance=6), made(label_map(labels), min_distance=6, min_area=100)

    assert len(whole.scores) > 1
    assert len(cut.scores) == 1


def test_logits_of_one_channel_are_scored_by_their_sigmoid() -> None:
    logits = np.full((1, 20, 30), -3.0, np.float32)
    logits[0, 4:12, 5:15] = 1.5
    labels = Argmax()(Logits(logits, ResizeTransform.of(20, 30)), RequestOptions())

    (score,) = made(labels).scores.tolist()

    assert score == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-5)


def test_an_image_of_12_megapixels_with_thousands_of_cells_is_cut_into_them() -> None:
    labels, (rows, columns) = np.zeros((3000, 4000), np.uint8), np.mgrid[:60, :50]
    pair = (rows - 15) ** 2 + (columns - 25) ** 2 <= 196
    pair |= (rows - 41) ** 2 + (columns - 25) ** 2 <= 196  # their distance is 26, two radii are 28
    labels[:] = np.tile(pair, (50, 80))
    transform = ResizeTransform(3000, 4000, 0, 0, 300, 400, 300, 400)
    value = LabelMap(labels, Logits(np.zeros((2, 300, 400), np.float32), transform))

    cut = made(value, min_distance=10, min_area=100)

    assert len(cut.scores) == 2 * 50 * 80
    assert cut.scores.tolist() == pytest.approx([0.5] * 8000, abs=1e-5)
    assert set((cut.boxes[:, 2:] - cut.boxes[:, :2])[:, 0].tolist()) == {29.0}
