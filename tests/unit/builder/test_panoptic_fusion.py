"""A label map and instances become one panoptic map, by the rules that detectron2 has written down in numpy here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segserve_builder.imaging.probabilities import mean_confidence
from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.panoptic_fusion import PanopticFusion
from segserve_builder.values import Instances, LabelMap, Logits, Panoptic, ResizeTransform

CLASSES = 5
THINGS = frozenset({3, 4})


def combined(
    masks: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    labels: NDArray[Any],
    overlap: float,
    area: int,
    least: float,
) -> tuple[NDArray[Any], list[tuple[int, int, bool]]]:
    """detectron2's `combine_semantic_and_instance_outputs`, without segments that have no pixel.

    There class 0 of the label map stands for all things and is skipped; here things have their ids.
    """
    ids, number, info = np.zeros(labels.shape, np.int32), 0, []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < least:
            break
        mask = masks[index]
        taken = mask & (ids > 0)
        if not mask.sum() or taken.sum() / mask.sum() > overlap:
            continue
        number += 1
        ids[mask & (ids == 0)] = number
        info.append((number, int(classes[index]), True))
    for label in np.unique(labels).tolist():
        mask = (labels == label) & (ids == 0)
        if label in THINGS or mask.sum() < max(area, 1):
            continue
        number += 1
        ids[mask] = number
        info.append((number, label, False))
    return ids, info


def blobs(n: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((n, height, width), bool)
    for mask in masks:
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, max(height, width) / 2)
        mask[:] = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    return masks


def scene(n: int, height: int, width: int, seed: int) -> tuple[LabelMap, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    logits = Logits(
        rng.normal(size=(CLASSES, height, width)).astype(np.float32), ResizeTransform.of(height, width), things=THINGS
    )
    labels = rng.integers(0, CLASSES, (height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
    masks = blobs(n, height, width, rng)
    found = Instances(
        np.zeros((n, 4), np.float32),
        rng.random(n, dtype=np.float32).round(1),
        rng.choice(sorted(THINGS), n).astype(np.int32),
        tuple(encode_bitmap(mask.view(np.uint8)) for mask in masks),
        height,
        width,
    )
    return LabelMap(labels.astype(np.uint8), logits, found), masks


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 7), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    st.sampled_from([0, 1, 20, 200]), st.sampled_from([0.0, 0.5, 0.8]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_map_is_that_of_detectron2(
    n: int, height: int, width: int, overlap: float, area: int, least: float, seed: int
) -> None:
    value, masks = scene(n, height, width, seed)
    assert value.instances is not None

    fused = PanopticFusion(overlap_threshold=overlap, stuff_area=area, instance_score=least)(value, RequestOptions())

    scores, classes = value.instances.scores, value.instances.classes
    ids, info = combined(masks, scores, classes, value.labels, overlap, area, np.float32(least).item())
    np.testing.assert_array_equal(fused.ids, ids)
    assert [(s.id, s.class_id, s.is_thing) for s in fused.segments] == info


def fuse(value: LabelMap, **options: Any) -> Panoptic:
    return PanopticFusion(**({"stuff_area": 0} | options))(value, RequestOptions())


def test_instances_score_as_they_were_found_and_stuff_as_its_class_in_the_label_map() -> None:
    value, _ = scene(4, 30, 40, seed=1)
    assert value.instances is not None

    fused = fuse(value, instance_score=0)

    confidence = mean_confidence(value, CLASSES)
    assert {s.score for s in fused.segments if s.is_thing} <= set(value.instances.scores.tolist())
    assert all(s.score == pytest.approx(float(confidence[s.class_id])) for s in fused.segments if not s.is_thing)


def test_an_instance_of_which_nothing_is_left_makes_no_segment() -> None:
    value, _ = scene(1, 20, 20, seed=2)
    one = value.instances
    assert one is not None
    everywhere = encode_bitmap(np.ones((20, 20), np.uint8))
    twice = Instances(
        one.boxes.repeat(2, 0), np.array([0.9, 0.8], np.float32), one.classes.repeat(2), (everywhere,) * 2, 20, 20
    )

    fused = fuse(replace(value, instances=twice), overlap_threshold=1)

    assert [(s.id, s.is_thing) for s in fused.segments] == [(1, True)]


def test_ignored_classes_and_things_never_come_from_the_label_map() -> None:
    value, _ = scene(0, 30, 40, seed=3)

    fused = fuse(value, ignore=[0])

    assert [s.class_id for s in fused.segments] == [1, 2]
    assert not fused.ids[np.isin(value.labels, [0, 3, 4])].any()


def test_small_stuff_is_left_out() -> None:
    value, _ = scene(0, 30, 40, seed=3)
    areas = np.bincount(value.labels.ravel(), minlength=CLASSES)

    fused = fuse(value, stuff_area=int(areas[1]) + 1)

    assert [s.class_id for s in fused.segments] == [c for c in (0, 1, 2) if areas[c] > areas[1]]


def test_a_label_map_of_16_bits_and_a_network_of_one_channel_will_do() -> None:
    logits = Logits(np.ones((1, 8, 8), np.float32), ResizeTransform.of(8, 8), things=frozenset({1}))

    fused = fuse(LabelMap(np.zeros((8, 8), np.uint16), logits))

    assert fused.ids.dtype == np.uint16
    assert fused.ids.all()
    assert [(s.class_id, s.is_thing) for s in fused.segments] == [(0, False)]
