"""RetinaNet and SSD: what their heads must look like, and how anchors are decoded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.pipelines import pipeline_of
from segserve_builder.errors import SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.decode_anchors import DecodeAnchors
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import Anchors, ResizeTransform

if TYPE_CHECKING:
    import torch

IMAGE = TensorSpec("image", "FP32", (None, 3, None, None))
LOGITS = TensorSpec("cls_logits", "FP32", (None, 500, 7))
DELTAS = TensorSpec("bbox_regression", "FP32", (None, 500, 4))
ANCHORS = TensorSpec("anchors", "FP32", (None, 500, 4))
LEVELS = TensorSpec("levels", "INT64", (None, 5))
# 40 x 60 pixels, three times as large in the network's input, with padding all around.
TRANSFORM = ResizeTransform(40, 60, 7, 5, 120, 180, 140, 200)


def pipeline(family: str, ids: tuple[int, ...] = (1, 2, 6)) -> Pipeline:
    return pipeline_of(family, ids)


def checked(*outputs: TensorSpec) -> NetworkIO:
    return FAMILIES["retinanet"].network_io(NetworkSignature((IMAGE,), outputs), pipeline("retinanet"))


def heads(seed: int, levels: tuple[int, ...], classes: int) -> Anchors:
    rng = np.random.default_rng(seed)
    n = sum(levels)
    corner = rng.random((n, 2)) * (200, 140)
    return Anchors(
        (rng.normal(size=(n, classes)) * 3).astype(np.float32),
        rng.normal(size=(n, 4)).astype(np.float32) * rng.choice([1, 5]).astype(np.float32),
        np.concatenate([corner, corner + rng.random((n, 2)) * 50], axis=1).astype(np.float32),
        levels,
        TRANSFORM,
    )


def decoded(value: Anchors, weights: tuple[float, ...], which: torch.Tensor) -> torch.Tensor:
    """`BoxCoder.decode_single` and `clip_boxes_to_image`, in pixels of the original image."""
    import torch

    anchors, deltas = torch.from_numpy(value.anchors)[which], torch.from_numpy(value.deltas)[which]
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + 0.5 * sizes + deltas[:, :2] / torch.tensor(weights[:2]) * sizes
    grown = torch.exp((deltas[:, 2:] / torch.tensor(weights[2:])).clamp(max=math.log(1000 / 16))) * sizes
    boxes = torch.cat([centres - 0.5 * grown, centres + 0.5 * grown], 1) - torch.tensor([5.0, 7, 5, 7])
    return torch.minimum(boxes.clamp(0), torch.tensor([180.0, 120, 180, 120])) / 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 5))
def test_sigmoid_heads_are_decoded_level_by_level_as_by_retinanet(seed: int, levels: list[int], classes: int) -> None:
    import torch

    value = heads(seed, tuple(levels), classes)
    scores, anchors, labels = [], [], []
    first = 0
    for number in levels:
        level = torch.from_numpy(value.logits[first : first + number]).sigmoid().flatten()
        hits = torch.where(level > 0.3)[0]
        best, index = level[hits].topk(min(20, len(hits)))
        scores.append(best)
        anchors.append(hits[index] // classes + first)
        labels.append(hits[index] % classes)
        first += number

    found = DecodeAnchors(score_threshold=0.3, top_k=20)(value, RequestOptions())

    assert found.scores == pytest.approx(torch.cat(scores).numpy(), abs=1e-6)
    assert np.array_equal(found.classes, torch.cat(labels).numpy())
    expected = decoded(value, (1, 1, 1, 1), torch.cat(anchors))
    assert found.boxes == pytest.approx(expected.numpy(), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 5))
def test_softmax_heads_are_decoded_class_by_class_as_by_ssd(seed: int, n: int, classes: int) -> None:
    import torch

    value = heads(seed, (n,), classes)
    probable = torch.from_numpy(value.logits).softmax(1)
    scores, anchors, labels = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for label in range(1, classes):
        hits = torch.where(probable[:, label] > 0.1)[0]
        best, index = probable[hits, label].topk(min(9, len(hits)))
        scores.append(best)
        anchors.append(hits[index])
        labels.append(torch.full_like(best, label))
    stage = DecodeAnchors(
        activation="softmax", score_threshold=0.1, top_k=9, top_k_of="class", weights=(10.0, 10.0, 5.0, 5.0)
    )

    found = stage(value, RequestOptions())

    assert found.scores == pytest.approx(torch.cat(scores).numpy(), abs=1e-6)
    assert np.array_equal(found.classes, torch.cat(labels).numpy())
    assert found.boxes == pytest.approx(decoded(value, (10, 10, 5, 5), torch.cat(anchors)).numpy(), abs=1e-3)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("asked", "least"), [(None, 0.05), (0.9, 0.9), (1.0, 1.0)])
def test_the_score_threshold_of_a_request_decides(
    activation: Literal["sigmoid", "softmax"], asked: float | None, least: float
) -> None:
    found = DecodeAnchors(activation=activation)(heads(0, (300,), 4), RequestOptions(score_threshold=asked))

    assert (found.scores > least).all()
    assert bool(len(found.scores)) == (least < 1)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_threshold_of_zero_keeps_no_more_than_the_best(activation: Literal["sigmoid", "softmax"]) -> None:
    value = heads(0, (400, 100), 4)

    found = DecodeAnchors(activation=activation, top_k=50)(value, RequestOptions(score_threshold=0))

    assert len(found.scores) == 100


def test_channels_of_no_class_are_left_out() -> None:
    value = replace(heads(0, (300,), 6), channels=frozenset({1, 4}))

    assert set(DecodeAnchors()(value, RequestOptions()).classes.tolist()) == {1, 4}


def test_extreme_heads_give_boxes_on_the_image() -> None:
    value = heads(0, (50,), 3)
    extreme = replace(value, logits=value.logits * np.float32(1e30), deltas=value.deltas * np.float32(1e30))

    found = DecodeAnchors()(extreme, RequestOptions())

    assert len(found.scores)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [60, 40, 60, 40]).all()


@pytest.mark.parametrize("outputs", [(LOGITS, DELTAS, ANCHORS), (LEVELS, ANCHORS, LOGITS, DELTAS)])
def test_outputs_are_known_by_their_names(outputs: tuple[TensorSpec, ...]) -> None:
    assert checked(*outputs).outputs[:3] == (LOGITS, DELTAS, ANCHORS)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (
            (LOGITS, DELTAS),
            "has the outputs 'cls_logits' FP32.*and optionally 'levels' INT64.*the network has 'cls_logits'",
        ),
        ((LOGITS, DELTAS, ANCHORS, replace(LEVELS, name="scores")), "the network has.*'scores' INT64"),
        ((LOGITS, DELTAS, replace(ANCHORS, shape=(500, 4))), r"'anchors' FP32 \[500, 4\]: the shape must be \[batch"),
        ((LOGITS, DELTAS, replace(ANCHORS, shape=(None, 400, 4))), "numbers of anchors must be the same"),
        ((LOGITS, replace(DELTAS, shape=(None, 500, 28)), ANCHORS), "its last dimension must be 4"),
        (
            (replace(LOGITS, shape=(None, 500, 6)), DELTAS, ANCHORS),
            "class 6 has no channel; class ids must be between 0 and 5",
        ),
        ((LOGITS, DELTAS, ANCHORS, replace(LEVELS, shape=(5,))), r"must be INT64 \[batch, levels\]"),
        ((LOGITS, DELTAS, ANCHORS, replace(LEVELS, dtype="FP32")), r"must be INT64 \[batch, levels\]"),
    ],
)
def test_other_outputs_are_refused(outputs: tuple[TensorSpec, ...], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        checked(*outputs)


def arrays(anchors: int = 6, channels: int = 7, levels: list[int] | None = None) -> dict[str, np.ndarray]:
    shapes = {"cls_logits": (1, anchors, channels), "bbox_regression": (1, anchors, 4), "anchors": (1, anchors, 4)}
    outputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return outputs | ({} if levels is None else {"levels": np.array([levels])})


@pytest.mark.parametrize(("levels", "read"), [(None, (6,)), ([3, 2, 1], (3, 2, 1)), ([6, 0], (6, 0))])
def test_levels_are_those_of_the_output_or_one_of_all(levels: list[int] | None, read: tuple[int, ...]) -> None:
    value: Any = FAMILIES["ssd"].read(arrays(levels=levels), TRANSFORM, pipeline("ssd"))

    assert value.levels == read
    assert value.channels == {1, 2, 6}


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (arrays(levels=[3, 2]), "the levels have 3, 2 anchors; there are 6 in all"),
        (arrays(levels=[7, -1]), "the levels have 7, -1 anchors"),
        (arrays(channels=6), r"shape \[1, 6, 6\]: class 6 has no channel"),
        (arrays() | {"anchors": np.zeros((1, 5, 4))}, r"one image's are \[1, A, C\], \[1, A, 4\], \[1, A, 4\]"),
        (arrays() | {"anchors": np.zeros((6, 4))}, r"shapes.*\[6, 4\]; one image's are"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(outputs: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        FAMILIES["ssd"].read(outputs, TRANSFORM, pipeline("ssd"))
