"""What is counted of answers, against the answers themselves and numpy's histograms."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import ValidationError

from fakes.pipelines import pipeline_of
from segserve_builder.imaging.probabilities import mean_confidence
from segserve_builder.kernels.labels import count_labels, sampled_confidences
from segserve_builder.kernels.rle_reader import regions
from segserve_builder.sampling import axes
from segserve_builder.spec.model_spec import MAX_COUNTED_CLASSES, ModelMetrics
from segserve_builder.steps.answer_metrics import MOST_PIXELS, OTHER, AnswerMetrics, Increment, Measures
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import (
    Candidates,
    ClassMasks,
    ImageStatistics,
    Instances,
    LabelMap,
    Logits,
    NoHeads,
    Panoptic,
    ResizeTransform,
    Segment,
)

IMAGE = ImageStatistics(brightness=0.25, contrast=0.55, detail=0.01, vertical_gradients=0.5, top_brightness=0.75)
MEASURES = Measures(IMAGE, started_s=10.0, ended_s=10.004, first=0.0)
TIMES_S = (10.03, 10.036)
HEIGHT, WIDTH = 40, 60


def pipeline(*names: str) -> Pipeline:
    classes = [{"id": number, "name": name, "thing": True} for number, name in enumerate(names)]
    return pipeline_of(classes=classes, model="street")


def counting(*names: str, **metrics: Any) -> AnswerMetrics:
    return AnswerMetrics(pipeline(*names), ModelMetrics(**metrics))


def counted(metrics: AnswerMetrics, answer: Any, *, is_test: bool = False, **outputs: Any) -> dict[str, float]:
    """Count an answer, and return what was added as Prometheus would write it."""
    transform = ResizeTransform.of(HEIGHT, WIDTH)
    metrics.count(answer, outputs, transform, MEASURES, TIMES_S, is_test=is_test)
    return written(metrics.take())


def written(increments: list[Increment]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for each in increments:
        labels = ",".join(f"{key}={value}" for key, value in each.labels.items())
        found[f"{each.name}{{{labels}}}" if labels else each.name] += each.amount
    return {name: amount for name, amount in found.items() if amount}


def labels_of(*values: int) -> LabelMap:
    """A map whose rows of pixels have these labels, in turn."""
    rows = np.resize(np.array(values, np.uint8), HEIGHT)
    return label_map(np.repeat(rows[:, None], WIDTH, axis=1))


def label_map(labels: NDArray[np.uint8], classes: int = 3) -> LabelMap:
    """The map of logits by which each pixel's class has half of the probability."""
    values = np.where(np.arange(classes)[:, None, None] == labels, np.log(classes - 1), 0).astype(np.float32)
    return LabelMap(labels, Logits(values, ResizeTransform.of(*labels.shape)))


def instances(classes: list[int], scores: list[float], sizes: list[int]) -> Instances:
    masks = []
    for size in sizes:
        bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        bitmap.reshape(-1, order="F")[7 : 7 + size] = 1
        masks.append(coco.encode(bitmap)["counts"])
    ids, values = np.array(classes, np.int32), np.array(scores, np.float32)
    return Instances(np.zeros((len(ids), 4), np.float32), values, ids, tuple(masks), HEIGHT, WIDTH)


def test_objects_their_pixels_and_scores_are_counted_by_class() -> None:
    found = counted(counting("car", "person"), instances([0, 0, 1], [0.95, 0.5, 0.15], [24, 48, 240]))

    assert found["segserve_class_instances_total{class=car}"] == 2
    assert found["segserve_class_pixels_total{class=car}"] == 72
    assert found["segserve_class_pixels_total{class=person}"] == 240
    assert found["segserve_class_answers_total{class=car}"] == 1
    assert found["segserve_class_score_bucket{class=car,le=0.5}"] == 1
    assert found["segserve_class_score_count{class=car}"] == 2
    assert found["segserve_class_score_sum{class=car}"] == pytest.approx(1.45)
    assert found["segserve_class_area_ratio_sum{class=person}"] == pytest.approx(0.1)
    assert "segserve_empty_answers_total" not in found


def test_an_answer_counts_its_image_and_its_time_in_each_step() -> None:
    found = counted(counting("car"), instances([], [], []))

    assert found["segserve_answers_total"] == found["segserve_empty_answers_total"] == 1
    assert found["segserve_image_pixels_sum"] == HEIGHT * WIDTH
    assert found["segserve_image_brightness_ratio_bucket{le=0.3}"] == 1
    assert "segserve_image_brightness_ratio_bucket{le=0.2}" not in found
    assert found["segserve_image_contrast_ratio_sum"] == pytest.approx(0.55)
    assert found["segserve_image_detail_ratio_bucket{le=0.012}"] == 1
    assert "segserve_image_detail_ratio_bucket{le=0.008}" not in found
    assert found["segserve_image_vertical_gradients_ratio_sum"] == 0.5
    assert found["segserve_image_top_brightness_ratio_sum"] == 0.75
    seconds = {step: found[f"segserve_step_seconds_sum{{step={step}}}"] for step in ("pre", "network", "post")}
    assert seconds == pytest.approx({"pre": 0.004, "network": 0.026, "post": 0.006})
    assert not [name for name in found if "class=" in name]


def test_of_a_label_map_pixels_and_confidence_are_counted_and_the_exact_one_where_it_was_asked_for() -> None:
    metrics = counting("road", "grass", "car")

    found = counted(metrics, labels_of(0, 0, 2, 0))

    assert found["segserve_class_pixels_total{class=road}"] == 0.75 * HEIGHT * WIDTH
    assert found["segserve_class_area_ratio_sum{class=car}"] == 0.25
    assert found["segserve_class_score_sum{class=car}"] == found["segserve_answer_confidence_sum"] == pytest.approx(0.5)
    assert not [name for name in found if "instances" in name or "islands" in name or "grass" in name]

    found = counted(metrics, labels_of(2), CONFIDENCE=np.array([0, 0, 0.875], np.float32))

    assert found["segserve_class_score_sum{class=car}"] == 0.875
    assert found["segserve_empty_answers_total"] == 1


def test_masks_by_class_have_their_own_areas_and_confidences() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[:20, :15] = mask[20:, 15:30] = 1
    mask[20:, 45:] = 1
    counts = coco.encode(mask)["counts"]
    masks = ClassMasks((b"", counts), np.array([0, 900]), np.array([0, 0.5], np.float32), HEIGHT, WIDTH)

    found = counted(counting("road", "car"), masks)

    assert found["segserve_class_area_ratio_sum{class=car}"] == 0.375
    assert found["segserve_class_islands_total{class=car}"] == 2
    assert found["segserve_class_score_count{class=car}"] == 1


def test_a_panoptic_answer_counts_things_as_objects_and_all_segments_as_pixels() -> None:
    ids = np.repeat(np.array([1, 2, 3, 0], np.uint16), HEIGHT // 4)[:, None].repeat(WIDTH, 1)
    segments = (Segment(1, 0, True, 0.75), Segment(2, 0, True, 0.5), Segment(3, 1, False, 0.25))

    found = counted(counting("car", "road"), Panoptic(ids, segments))

    assert found["segserve_class_instances_total{class=car}"] == 2
    assert "segserve_class_instances_total{class=road}" not in found
    assert found["segserve_class_area_ratio_sum{class=car}"] == 0.5
    assert found["segserve_class_score_sum{class=road}"] == 0.25


def test_boxes_have_no_pixels() -> None:
    found = counted(
        counting("car"),
        Candidates(
            np.zeros((2, 4), np.float32),
            np.array([0.5, 0.25], np.float32),
            np.zeros(2, np.int32),
            NoHeads(),
            ResizeTransform.of(HEIGHT, WIDTH),
        ),
    )

    assert found["segserve_class_instances_total{class=car}"] == 2
    assert not [name for name in found if name.startswith(("segserve_class_pixels", "segserve_class_area"))]


def test_a_thousand_classes_have_fifty_series_and_one_of_the_others() -> None:
    metrics = counting(*(f"class {number}" for number in range(1000)))

    found = counted(metrics, instances(list(range(1000)), [0.5] * 1000, [2] * 1000))

    by_class = [name for name in found if name.startswith("segserve_class_instances_total")]
    assert len(by_class) == MAX_COUNTED_CLASSES + 1
    assert found[f"segserve_class_instances_total{{class={OTHER}}}"] == 950
    assert found[f"segserve_class_pixels_total{{class={OTHER}}}"] == 1900
    again = [counted(metrics, instances(list(range(1000)), [0.5] * 1000, [2] * 1000)) for _ in range(3)]
    assert {name for each in again for name in each} <= found.keys()


def test_named_classes_have_series_of_their_own_wherever_they_are() -> None:
    names = [f"class {number}" for number in range(100)]

    found = counted(counting(*names, classes=("class 99", "class 7")), instances([99, 7, 1, 2], [0.5] * 4, [1] * 4))

    series = {name: amount for name, amount in found.items() if name.startswith("segserve_class_instances")}
    assert series == {
        "segserve_class_instances_total{class=class 7}": 1,
        "segserve_class_instances_total{class=class 99}": 1,
        "segserve_class_instances_total{class=other}": 2,
    }


def test_answers_are_counted_by_the_slices_that_are_declared_and_all_others_together() -> None:
    metrics = counting("car", "person", slices=("north", "south"))
    answers = [("north", [0]), ("south", [0, 1]), ("south", [1]), ("", []), ("east", [0])]
    for label, classes in answers:
        answer = instances(classes, [0.5] * len(classes), [24] * len(classes))
        metrics.count(answer, {}, ResizeTransform.of(HEIGHT, WIDTH), MEASURES, TIMES_S, is_test=False, label=label)

    found = written(metrics.take())

    by_slice = {label: found[f"segserve_answers_total{{slice={label}}}"] for label in ("north", "south", OTHER)}
    assert by_slice == {"north": 1, "south": 2, OTHER: 2}
    assert found[f"segserve_empty_answers_total{{slice={OTHER}}}"] == 1
    assert found["segserve_class_answers_total{slice=south,class=person}"] == 2
    assert found["segserve_class_pixels_total{slice=south,class=car}"] == 24
    assert found[f"segserve_class_instances_total{{slice={OTHER},class=car}}"] == 1
    assert found["segserve_class_area_ratio_count{slice=south,class=person}"] == 2
    assert found["segserve_class_score_sum{slice=north,class=car}"] == 0.5
    assert found["segserve_image_detail_ratio_count{slice=south}"] == 2
    assert found["segserve_answer_confidence_count{slice=south}"] == 2
    assert found["segserve_step_seconds_count{step=pre}"] == 5
    assert "segserve_class_answers_total{slice=north,class=person}" not in found


def test_the_more_slices_are_declared_the_fewer_classes_are_counted_and_what_is_named_must_fit() -> None:
    names = tuple(f"class {number}" for number in range(100))
    slices = tuple(f"camera-{number}" for number in range(100))

    found = counted(counting(*names, slices=slices), instances(list(range(100)), [0.5] * 100, [1] * 100))

    of_instances = [name for name in found if name.startswith("segserve_class_instances_total")]
    assert len(of_instances) == 6
    with pytest.raises(ValidationError, match="100 slices of 6 classes; their product is at most 500"):
        ModelMetrics(slices=slices, classes=names[:6])


def test_counters_begin_with_zero_so_that_their_first_increment_shows() -> None:
    names = {each.name for each in counting("car").take()}

    assert {"segserve_answers_total", "segserve_class_answers_total", "segserve_class_instances_total"} <= names


def test_what_was_taken_is_not_taken_again() -> None:
    metrics = counting("car")

    assert counted(metrics, instances([0], [0.5], [9]))
    assert metrics.take() == []


def test_the_first_request_of_a_process_is_a_cold_start_also_if_an_agent_sent_it() -> None:
    metrics = counting("car")

    first = counted(metrics, instances([0], [0.5], [9]), is_test=True)
    second = counted(metrics, instances([0], [0.5], [9]), is_test=True)

    assert first == {"segserve_cold_starts_total{step=post}": 1}
    assert second == {}


@given(st.lists(st.floats(0, 1, width=32), max_size=40))
def test_buckets_are_cumulative_as_a_histogram_of_prometheus(scores: list[float]) -> None:
    found = counted(counting("car"), instances([0] * len(scores), scores, [1] * len(scores)))

    for edge in (0.1, 0.5, 1.0):
        expected = sum(score <= edge for score in scores)
        assert found.get(f"segserve_class_score_bucket{{class=car,le={edge:g}}}", 0) == expected


def test_the_areas_of_a_large_map_are_estimated_to_a_hundredth_of_the_image() -> None:
    height, width = 3000, 4000
    rows, columns = np.ogrid[:height, :width]
    circle = ((rows - 1400) ** 2 + (columns - 1900) ** 2 < 900**2).astype(np.uint8)
    assert circle.size > MOST_PIXELS
    metrics = counting("road", "car")

    metrics.count(label_map(circle), {}, ResizeTransform.of(height, width), MEASURES, TIMES_S, is_test=False)

    found = written(metrics.take())
    assert found["segserve_class_area_ratio_sum{class=car}"] == pytest.approx(circle.mean(), abs=0.01)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.sampled_from([np.uint8, np.uint16]), st.integers(0))
def test_labels_are_counted_as_by_numpy(height: int, width: int, step: int, dtype: Any, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, (height, width)).astype(dtype)

    assert count_labels(labels, 5, step).tolist() == np.bincount(labels[::step, ::step].ravel(), minlength=5).tolist()


@given(st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]), st.integers(0))
def test_confidences_sampled_at_each_pixel_are_the_exact_ones(channels: int, temperature: float, seed: int) -> None:
    drawn = np.random.default_rng(seed).normal(0, 3, (channels, 6, 9)).astype(np.float32)
    labels = (drawn.argmax(axis=0) if channels > 1 else drawn[0] > 0).astype(np.uint8)
    transform = ResizeTransform.of(6, 9)
    exact = mean_confidence(LabelMap(labels, Logits(drawn, transform, temperature)), max(channels, 2))

    points, sums = sampled_confidences(labels, drawn, *axes(transform, 6, 9), temperature, 1)

    assert sums / np.maximum(points, 1) == pytest.approx(exact, rel=1e-4)


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="labels up to 4; 4 are allowed"):
        count_labels(np.arange(5, dtype=np.uint8)[None], 4)


@given(st.lists(st.lists(st.booleans(), min_size=35, max_size=35), max_size=6))
def test_the_areas_of_masks_are_cocos_and_their_regions_scipys(bits: list[list[bool]]) -> None:
    from scipy import ndimage

    masks = [np.array(each, np.uint8).reshape(5, 7) for each in bits]
    encoded = [coco.encode(np.asfortranarray(mask)) for mask in masks]

    areas, islands = regions([each["counts"] for each in encoded], 5, 7)

    assert areas.tolist() == [int(coco.area(each)) for each in encoded]
    assert islands.tolist() == [ndimage.label(mask, np.ones((3, 3)))[1] for mask in masks]


def test_a_thread_that_takes_while_another_one_counts_loses_nothing() -> None:
    from threading import Thread

    metrics, taken = counting("car"), Counter[str]()
    answer, ended = instances([0], [0.5], [9]), False

    def take() -> None:
        for _ in count():
            taken.update(written(metrics.take()))
            if ended:
                break
        taken.update(written(metrics.take()))

    thread = Thread(target=take)
    thread.start()
    for _ in range(500):
        metrics.count(answer, {}, ResizeTransform.of(HEIGHT, WIDTH), MEASURES, TIMES_S, is_test=False)
    ended = True
    thread.join()

    assert taken["segserve_answers_total"] == taken["segserve_class_score_bucket{class=car,le=+Inf}"] == 500
