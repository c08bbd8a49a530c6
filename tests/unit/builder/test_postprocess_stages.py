"""Postprocess stages against scipy, numpy and pycocotools."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.morphology import Morphology
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.remove_small_regions import RemoveSmallRegions
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, Instances, LabelMap, Logits, PrototypeHeads, ResizeTransform

SEEDS = st.integers(0, 2**32 - 1)


def blobs(seed: int, values: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width, block = rng.integers(1, 40), rng.integers(1, 90), rng.integers(1, 7)
    coarse = rng.integers(0, values, (height // block + 1, width // block + 1))
    noisy = coarse.repeat(block, 0).repeat(block, 1)[:height, :width]
    flip = rng.random((height, width)) < 0.03
    return np.where(flip, rng.integers(0, values, (height, width)), noisy).astype(np.uint8)


def label_map(labels: np.ndarray) -> LabelMap:
    return LabelMap(labels, Logits(np.zeros((1, 1, 1), np.float32), ResizeTransform.of(*labels.shape)))


def instances(*masks: np.ndarray) -> Instances:
    n = len(masks)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    counts = tuple(encode_bitmap(np.ascontiguousarray(mask)) for mask in masks)
    return Instances(boxes, np.arange(n, dtype=np.float32), np.arange(n, dtype=np.int32), counts, *masks[0].shape)


def candidates(**changed: Any) -> Candidates:
    n = len(changed.get("scores", np.zeros(3)))
    plain = {
        "boxes": np.tile(np.array([0, 0, 10, 10], np.float32), (n, 1)),
        "scores": np.array([0.2, 0.9, 0.5], np.float32),
        "classes": np.zeros(n, np.int32),
        "heads": PrototypeHeads(np.ones((n, 1), np.float32), np.ones((1, 4, 4), np.float32)),
        "transform": ResizeTransform.of(16, 16),
    }
    return Candidates(**(plain | changed))


def by_scipy(mask: np.ndarray, operation: str, kernel: np.ndarray) -> np.ndarray:
    """Binary morphology that sees nothing beyond the image: it neither erodes nor grows from there."""
    from scipy import ndimage

    erode = lambda m: ndimage.binary_erosion(m, kernel, border_value=1)  # noqa: E731
    dilate = lambda m: ndimage.binary_dilation(m, kernel)  # noqa: E731
    steps = {"erode": [erode], "dilate": [dilate], "open": [erode, dilate], "close": [dilate, erode]}[operation]
    for step in steps:
        mask = step(mask)
    return mask


@pytest.mark.parametrize("shape", ["ellipse", "square", "cross"])
@pytest.mark.parametrize("operation", ["open", "close", "dilate", "erode"])
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, radius=st.integers(1, 5))
def test_morphology_is_that_of_scipy_on_masks_and_on_labels(operation: Any, shape: Any, seed: int, radius: int) -> None:
    mask = blobs(seed)
    cv_shape = {"ellipse": cv2.MORPH_ELLIPSE, "square": cv2.MORPH_RECT, "cross": cv2.MORPH_CROSS}[shape]
    expected = by_scipy(mask, operation, cv2.getStructuringElement(cv_shape, (2 * radius + 1, 2 * radius + 1)))
    stage = Morphology(operation=operation, radius=radius, shape=shape)

    on_labels = stage(label_map(mask), RequestOptions())
    on_instances = stage(instances(mask), RequestOptions())

    assert np.array_equal(on_labels.labels, expected)
    assert on_instances.masks == ((encode_bitmap(expected.astype(np.uint8)),) if expected.any() else ())


def test_a_class_grows_only_into_class_0_and_the_lowest_id_wins() -> None:
    labels = np.array([[0, 3, 2, 0, 0, 0, 1, 0, 2]], np.uint8)

    grown = Morphology(operation="dilate")(label_map(labels), RequestOptions())

    assert grown.labels.tolist() == [[3, 3, 2, 2, 0, 1, 1, 1, 2]]


def test_what_a_class_loses_becomes_class_0() -> None:
    labels = np.array([[2, 2, 2, 1, 1, 1]], np.uint8)

    shrunk = Morphology(operation="erode", shape="square")(label_map(labels), RequestOptions())

    assert shrunk.labels.tolist() == [[2, 2, 0, 0, 1, 1]]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 40), st.sampled_from([4, 8]))
def test_small_regions_go_from_labels_and_masks(seed: int, min_area: int, connectivity: Literal[4, 8]) -> None:
    from scipy import ndimage

    labels = blobs(seed, values=3)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    kept = {}
    for label in (1, 2):
        parts, _ = ndimage.label(labels == label, structure)
        large = np.bincount(parts.ravel()) >= min_area
        large[0] = False
        kept[label] = large[parts]
    stage = RemoveSmallRegions(min_area=min_area, connectivity=connectivity)

    on_labels = stage(label_map(labels), RequestOptions())
    on_instances = stage(instances((labels == 1).view(np.uint8), (labels == 2).view(np.uint8)), RequestOptions())

    assert np.array_equal(on_labels.labels, kept[1] + np.uint8(2) * kept[2])
    expected = [(label - 1, encode_bitmap(kept[label].astype(np.uint8))) for label in (1, 2) if kept[label].any()]
    assert list(zip(on_instances.classes.tolist(), on_instances.masks, strict=True)) == expected


def test_an_instance_of_which_nothing_is_left_goes_with_its_box_and_score() -> None:
    speck, blob = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    speck[0, 0], blob[2:6, 2:6] = 1, 1

    left = RemoveSmallRegions(min_area=4)(instances(blob, speck, blob), RequestOptions())

    assert left.scores.tolist() == [0, 2]
    assert left.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert len(left.masks) == 2


@pytest.mark.parametrize(("asked", "kept"), [(None, [0.9, 0.5]), (0.6, [0.9]), (0.0, [0.2, 0.9, 0.5])])
def test_the_score_threshold_of_a_request_overrides_the_stage(asked: float | None, kept: list[float]) -> None:
    left = ScoreThreshold(threshold=0.5)(candidates(), RequestOptions(score_threshold=asked))

    assert left.scores.tolist() == pytest.approx(kept)


def test_a_score_that_equals_the_threshold_is_kept() -> None:
    left = ScoreThreshold(threshold=0.3)(candidates(scores=np.array([0.3, 0.29], np.float32)), RequestOptions())

    assert left.scores.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(("aware", "kept"), [(True, [0.9, 0.5]), (False, [0.9])])
def test_only_class_aware_nms_keeps_boxes_of_other_classes(aware: bool, kept: list[float]) -> None:
    left = Nms(class_aware=aware)(candidates(classes=np.array([0, 0, 1], np.int32)), RequestOptions())

    assert left.scores.tolist() == pytest.approx(kept)


@pytest.mark.parametrize(("asked", "number"), [(None, 2), (1, 1), (9, 3)])
def test_max_detections_of_a_request_overrides_the_stage(asked: int | None, number: int) -> None:
    apart = np.array([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], np.float32)

    left = Nms(max_detections=2)(candidates(boxes=apart), RequestOptions(max_detections=asked))

    assert left.scores.tolist() == pytest.approx([0.9, 0.5, 0.2][:number])


def test_boxes_are_clipped_to_the_image_masks_to_the_boxes_and_what_has_no_mask_is_dropped() -> None:
    boxes = np.array([[30, 30, 40, 40], [-3, 2.5, 5, 7], [3.4, 4, 3.45, 9]], np.float32)

    cropped = CropMasks()(candidates(boxes=boxes), RequestOptions())

    assert cropped.boxes.tolist() == [[0, 2.5, 5, 7]]
    assert cropped.scores.tolist() == candidates().scores[1:2].tolist()
    expected = np.zeros((16, 16), np.uint8)
    expected[3:7, 0:5] = 1
    assert [decode_bitmap(counts, 16, 16).tolist() for counts in cropped.masks] == [expected.tolist()]


@pytest.mark.parametrize(("threshold", "area"), [(0.5, [256]), (0.8, [])])
def test_a_mask_is_what_is_more_probable_than_the_threshold(threshold: float, area: list[int]) -> None:
    everything = np.array([[0, 0, 16, 16]], np.float32)

    cropped = CropMasks(threshold=threshold)(
        candidates(boxes=everything, scores=np.ones(1, np.float32)), RequestOptions()
    )

    assert [
        decode_bitmap(counts, 16, 16).sum() for counts in cropped.masks
    ] == area  # the logit is 1, its probability 0.73


def test_a_binary_threshold_is_a_probability() -> None:
    logits = Logits(np.array([[[0.0, 0.5, 1.0, 1.5]]], np.float32), ResizeTransform.of(1, 4))

    assert Argmax()(logits, RequestOptions()).labels.tolist() == [[0, 1, 1, 1]]
    assert Argmax(threshold=0.7)(logits, RequestOptions()).labels.tolist() == [[0, 0, 1, 1]]
