"""What the builder's last step encodes, the client decodes: the same masks whatever the encoding."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pycocotools import mask as coco

from fakes.pipelines import pipeline_of
from segserve.calls.answers import OUTPUTS, read_model_info, read_result
from segserve.results.objects import DetectionResult, InstanceResult, KeypointResult
from segserve.results.result import PanopticResult, Result, SemanticResult
from segserve.results.values import ENCODINGS
from segserve_builder.spec.model_spec import ModelClass
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.encode import encode
from segserve_builder.values import (
    Candidates,
    ClassMasks,
    Instances,
    KeypointDetections,
    LabelMap,
    Logits,
    NoHeads,
    Panoptic,
    ResizeTransform,
    Segment,
    Value,
)
from segserve_common.kserve import InferAnswer, Tensor

HEIGHT, WIDTH = 101, 128
CLASSES = tuple(ModelClass(id=number, name=f"class {number}") for number in range(3))


@cache
def regions() -> list[np.ndarray]:
    """Return the bright regions of the coins."""
    from skimage import data, measure

    labels = measure.label(data.coins()[::3, ::3] > 120, connectivity=1)
    return [part.label == labels for part in measure.regionprops(labels) if part.area > 20]


def answered(value: Value, wanted: tuple[str, ...], encoding: str | None) -> Result:
    pipeline = pipeline_of().model_copy(update={"classes": CLASSES})
    arrays = encode(value, pipeline, RequestOptions(encoding=encoding), frozenset(wanted) - {"REVISION"})
    tensors = {
        name: Tensor.of_items(name, array.tolist()) if array.dtype == np.object_ else Tensor.of_array(name, array)
        for name, array in arrays.items()
    }
    tensors["REVISION"] = Tensor.of_items("REVISION", [b"coins-aa"])
    return read_result(InferAnswer("coins", tensors), read_model_info("coins", wanted, {}))


def filled(mask: np.ndarray) -> np.ndarray:
    from skimage import measure

    return np.asarray(measure.label(~np.pad(mask, 1), connectivity=1) != 1)[1:-1, 1:-1]


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_instances_have_the_same_masks_in_every_encoding(encoding: str | None) -> None:
    counts = tuple(bytes(coco.encode(np.asfortranarray(part.astype(np.uint8)))["counts"]) for part in regions())
    boxes = np.zeros((len(regions()), 4), np.float32)
    scores, classes = np.linspace(1, 0.5, len(regions()), dtype=np.float32), np.ones(len(regions()), np.int32)

    result = answered(Instances(boxes, scores, classes, counts, HEIGHT, WIDTH), OUTPUTS["MASKS"], encoding)

    assert isinstance(result, InstanceResult)
    assert len(result) == len(regions()) > 10
    for instance, part in zip(result, regions(), strict=True):
        expected = filled(part) if encoding == "polygons" else part
        np.testing.assert_array_equal(instance.mask, expected)
        assert instance.area == expected.sum()


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_labels_are_the_same_in_every_encoding(encoding: str | None) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 45, columns - 60)
    # A ring of the last class around a disc of the first but one: polygons have no holes for it.
    labels = np.select([distance < 15, distance < 30], [1, 2], 0).astype(np.uint8)
    logits = Logits(np.zeros((3, HEIGHT, WIDTH), np.float32), ResizeTransform.of(HEIGHT, WIDTH))

    result = answered(LabelMap(labels, logits), OUTPUTS["AREAS"], encoding)

    assert isinstance(result, SemanticResult)
    np.testing.assert_array_equal(result.labels, labels)
    assert list(result.areas.values()) == np.bincount(labels.ravel()).tolist()


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_the_masks_of_a_multi_label_model_may_overlap_in_every_encoding(encoding: str | None) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks = [rows >= 0, np.hypot(rows - 45, columns - 60) < 30, columns < 50]
    counts = tuple(bytes(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]) for mask in masks)
    areas = np.array([mask.sum() for mask in masks], np.int64)

    result = answered(ClassMasks(counts, areas, np.full(3, 0.5, np.float32), HEIGHT, WIDTH), OUTPUTS["AREAS"], encoding)

    assert isinstance(result, SemanticResult)
    for class_id, mask in enumerate(masks):
        np.testing.assert_array_equal(result.mask(class_id), mask)
    assert list(result.areas.values()) == areas.tolist()


@pytest.mark.parametrize("parts", [25, 300])
@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_segments_are_the_same_in_every_encoding(encoding: str | None, parts: int) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    numbers = [parts - index for index in range(len(regions()))]
    for number, part in zip(numbers, regions(), strict=True):
        ids[filled(part)] = number
    segments = tuple(Segment(number, number % 3, number % 2 == 0, 0.5) for number in numbers)

    result = answered(Panoptic(ids, segments), OUTPUTS["SEGMENTS"], encoding)

    assert isinstance(result, PanopticResult)
    np.testing.assert_array_equal(result.ids, ids)
    for found, expected in zip(result, segments, strict=True):
        rows, columns = np.nonzero(ids == expected.id)
        assert (found.id, found.class_id, found.is_thing) == (expected.id, expected.class_id, expected.is_thing)
        assert found.area == len(rows)
        assert found.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_an_image_without_segments_is_an_answer() -> None:
    result = answered(Panoptic(np.zeros((4, 5), np.uint16), ()), OUTPUTS["SEGMENTS"], None)

    assert isinstance(result, PanopticResult)
    assert len(result) == 0
    assert result.ids.tolist() == [[0] * 5] * 4


@pytest.mark.parametrize("number", [0, 1, 7])
def test_boxes_and_keypoints_arrive_clipped_to_the_image(number: int) -> None:
    rng = np.random.default_rng(number)
    corners = rng.uniform(-20, 60, (number, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 80], axis=1)
    scores, classes = rng.random(number).astype(np.float32), np.arange(number, dtype=np.int32) % 3
    points = rng.uniform(0, 40, (number, 5, 3)).astype(np.float32)

    found = answered(
        Candidates(boxes, scores, classes, NoHeads(), ResizeTransform.of(HEIGHT, WIDTH)), OUTPUTS["BOXES"], None
    )
    pointed = answered(KeypointDetections(boxes, scores, classes, points, HEIGHT, WIDTH), OUTPUTS["KEYPOINTS"], None)

    assert isinstance(found, DetectionResult)
    assert isinstance(pointed, KeypointResult)
    for result in (found, pointed):
        np.testing.assert_array_equal(result.boxes, np.clip(boxes, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]))
        np.testing.assert_array_equal(result.scores, scores)
        np.testing.assert_array_equal(result.class_ids, classes)
    if number:
        np.testing.assert_array_equal(pointed.points, points)
