"""The stages that clean regions, on label maps and on instances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.fill_holes import FillHoles
from segserve_builder.stages.keep_largest import KeepLargest
from segserve_builder.stages.remove_small_regions import RemoveSmallRegions
from segserve_builder.values import Instances, LabelMap, Logits, ResizeTransform

CORNERS = np.ones((3, 3), bool)


def label_map(labels: np.ndarray) -> LabelMap:
    return LabelMap(labels, Logits(np.zeros((1, 1, 1), np.float32), ResizeTransform.of(*labels.shape)))


def instances(*masks: np.ndarray) -> Instances:
    n = len(masks)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    counts = tuple(encode_bitmap(mask.astype(np.uint8)) for mask in masks)
    return Instances(boxes, np.arange(n, dtype=np.float32), np.arange(n, dtype=np.int32), counts, *masks[0].shape)


def bitmaps(value: Instances) -> list[np.ndarray]:
    return [decode_bitmap(counts, value.height, value.width) for counts in value.masks]


def scattered(seed: int, values: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 4))
    return rng.integers(0, values, (12, 17)).repeat(block, 0).repeat(block, 1)[:12, :17].astype(np.uint8)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_each_instance_has_its_own_holes_filled(seed: int) -> None:
    from scipy import ndimage

    masks = [mask for mask in (scattered(seed, 2), scattered(seed + 1, 2), np.ones((12, 17))) if mask.any()]

    filled = FillHoles()(instances(*masks), RequestOptions())

    for mask, given_mask in zip(masks, bitmaps(filled), strict=True):
        assert np.array_equal(given_mask, ndimage.binary_fill_holes(mask, CORNERS))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_each_instance_keeps_its_largest_region(seed: int) -> None:
    from scipy import ndimage

    mask = scattered(seed, 2)
    if not mask.any():
        return
    parts, _ = ndimage.label(mask, CORNERS)
    areas = np.bincount(parts.ravel())
    areas[0] = 0

    (kept,) = bitmaps(KeepLargest(connectivity=8)(instances(mask), RequestOptions()))

    assert np.array_equal(kept, parts == areas.argmax())


RING = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 0]], np.uint8)
STAGES = {
    "removeSmallRegions": RemoveSmallRegions(min_area=2, classes=(1,)),
    "keepLargest": KeepLargest(classes=(1,)),
    "fillHoles": FillHoles(classes=(1,)),
}


@pytest.mark.parametrize("name", STAGES)
def test_only_instances_of_the_classes_that_are_named_change(name: str) -> None:
    before = instances(RING, RING)

    after = STAGES[name](before, RequestOptions())

    assert after.classes.tolist() == [0, 1]
    assert after.masks[0] == before.masks[0]
    assert after.masks[1] != before.masks[1]


@pytest.mark.parametrize("name", STAGES)
def test_only_the_classes_that_are_named_change_in_a_label_map(name: str) -> None:
    labels = np.concatenate([RING, np.zeros((1, 5), np.uint8), 2 * RING])

    after = STAGES[name](label_map(labels), RequestOptions())

    assert np.array_equal(after.labels[4:], labels[4:])
    assert not np.array_equal(after.labels[:3], labels[:3])


def test_holes_of_up_to_max_area_are_filled() -> None:
    labels = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]], np.uint8)

    filled = FillHoles(max_area=1)(label_map(labels), RequestOptions())

    assert filled.labels.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 1], [1] * 6]


def test_other_classes_are_filled_only_on_demand() -> None:
    labels = np.array([[1, 1, 1, 1], [1, 2, 0, 1], [1, 1, 1, 1]], np.uint8)

    assert FillHoles()(label_map(labels), RequestOptions()).labels[1].tolist() == [1, 2, 1, 1]
    assert FillHoles(over="any")(label_map(labels), RequestOptions()).labels[1].tolist() == [1, 1, 1, 1]
