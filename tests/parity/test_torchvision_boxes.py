"""Boxes as torchvision chooses and decodes them, in Debian's build of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.pipelines import pipeline_of
from oracles.debian import Debian
from segserve_builder.families import FAMILIES
from segserve_builder.kernels.nms import nms
from segserve_builder.stages.base import RequestOptions
from segserve_builder.values import ResizeTransform

ORACLES = Path(__file__).parents[1] / "oracles"
SEEDS = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CLASSES = {"retinanet": range(7), "ssd": range(1, 7)}
pytestmark = pytest.mark.needs("torchvision")


@pytest.fixture(scope="module")
def boxes_of_torchvision() -> Iterator[Debian]:
    with Debian(ORACLES / "torchvision_boxes.py") as debian:
        yield debian


@pytest.fixture(scope="module")
def networks_of_torchvision() -> Iterator[Debian]:
    with Debian(ORACLES / "export_anchors.py") as debian:
        yield debian


def some_boxes(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    """Boxes that overlap much; whole numbers make ties of overlaps, and `odd` ones may be flat, inverted or huge."""
    corner = rng.random((n, 2)) * 100 if kind == "smooth" else rng.integers(0, 40, (n, 2))
    sizes = rng.random((n, 2)) * 40 if kind == "smooth" else rng.integers(0, 20, (n, 2))
    if kind == "odd":
        sizes = (sizes - 5) * 10.0 ** rng.integers(0, 25)
    return np.concatenate([corner, corner + sizes], axis=1).astype(np.float32)


@PROPERTY
@given(
    seed=SEEDS,
    n=st.integers(0, 400),
    kind=st.sampled_from(["smooth", "whole", "odd"]),
    threshold=st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.5, 0.6, 0.7, 0.9, 1.0]),
)
def test_kept_boxes_are_those_of_torchvision(
    boxes_of_torchvision: Debian, seed: int, n: int, kind: str, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, n, kind)
    scores = (rng.integers(0, 5, n) / 4 if kind != "smooth" else rng.random(n)).astype(np.float32)
    classes = rng.integers(0, 3, n)

    agnostic = nms(boxes, scores, np.zeros(n, np.int32), threshold, n)
    aware = nms(boxes, scores, classes.astype(np.int32), threshold, n)

    assert np.array_equal(agnostic, boxes_of_torchvision.call("nms", boxes, scores, threshold))
    expected = boxes_of_torchvision.call("batched_nms_by_class", boxes, scores, classes, threshold)
    # It sorts classes' boxes together without heed to the order of equal scores.
    assert np.array_equal(scores[aware], scores[expected])
    assert sorted(aware.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("kind", ["clusters", "all overlap", "none overlap"])
def test_ten_thousand_boxes_are_kept_as_by_torchvision(boxes_of_torchvision: Debian, kind: str) -> None:
    rng, n = np.random.default_rng(0), 10_000
    corner = rng.random((250, 2))[rng.integers(0, 250, n)] * 1000 + rng.random((n, 2)) * 20
    if kind != "clusters":
        corner = np.zeros((n, 2)) if kind == "all overlap" else np.stack(np.divmod(np.arange(n), 100), axis=1) * 50
    boxes = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
    scores = (rng.permutation(n) / n).astype(np.float32)
    classes = rng.integers(0, 80, n)

    assert np.array_equal(
        nms(boxes, scores, np.zeros(n, np.int32), 0.5, n), boxes_of_torchvision.call("nms", boxes, scores, 0.5)
    )
    assert np.array_equal(
        nms(boxes, scores, classes.astype(np.int32), 0.5, n),
        boxes_of_torchvision.call("batched_nms", boxes, scores, classes, 0.5),
    )


def detections(family: str, outputs: list[np.ndarray], transform: ResizeTransform) -> Any:
    named = dict(zip(("cls_logits", "bbox_regression", "anchors", "levels"), outputs, strict=True))
    value: Any = FAMILIES[family].read(named, transform, pipeline_of(family, CLASSES[family]))
    for stage in FAMILIES[family].default_postprocess:
        value = stage(value, RequestOptions())
    return value


@pytest.mark.parametrize("family", ["retinanet", "ssd"])
@pytest.mark.parametrize("seed", range(4))
def test_detections_of_raw_heads_are_those_of_torchvision(
    networks_of_torchvision: Debian, tmp_path: Path, family: str, seed: int
) -> None:
    height, width = 60 + 11 * seed, 130 - 17 * seed
    image = np.random.default_rng(seed).random((3, height, width)).astype(np.float32)
    inputs, inner, heads, answer = networks_of_torchvision.call("answer", family, seed, image)
    transform = ResizeTransform(height, width, 0, 0, *inner, *inputs.shape[2:])

    found = detections(family, heads, transform)

    boxes, scores, labels = answer
    assert found.scores == pytest.approx(scores, abs=1e-6)
    assert np.array_equal(found.classes, labels)
    assert found.boxes == pytest.approx(boxes, abs=1e-3)
