"""YOLO heads, RetinaNet and SSD through the real Triton: the answer is that of their projects' post-processing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench.coins import write
from bench.platform import platform
from networks.served import model, photograph
from oracles.debian import Debian
from segserve import Client, DetectionResult, InstanceResult

if TYPE_CHECKING:
    from networks import yolo

pytestmark = [pytest.mark.platform, pytest.mark.needs("torchvision")]

YOLO: dict[str, tuple[yolo.Layout, bool]] = {
    "yolo-seg": ("v8", True),
    "yolo-detect": ("v8", False),
    "yolov5-seg": ("v5", True),
    "yolov5-detect": ("v5", False),
    "yolo-nms-free-seg": ("end to end", True),
    "yolo-nms-free-detect": ("end to end", False),
}
# Sizes that torchvision's transform leaves as they are, and the classes' ids: 0 is SSD's background.
ANCHORS: dict[str, tuple[tuple[int, int], range]] = {
    "retinanet": ((96, 160), range(7)),
    "ssd": ((128, 128), range(1, 7)),
}
IMAGENET = {"normalise": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}


@pytest.fixture(scope="module")
def torchvision() -> Iterator[Debian]:
    with Debian(Path(__file__).parents[1] / "oracles/export_anchors.py") as debian:
        yield debian


@pytest.fixture(scope="module")
def served(torchvision: Debian, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    from networks import yolo
    from networks.yolo import CLASSES, SIDE

    folder = tmp_path_factory.mktemp("boxes")
    for family, (layout, masks) in YOLO.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            yolo.Network(layout, masks).write(folder / f"{family}.onnx")
    for family in ANCHORS:
        torchvision.call("export", family, 0, str(folder / f"{family}.onnx"))
    resources = [resource(folder, family, range(CLASSES), (SIDE, SIDE), []) for family in YOLO]
    resources += [resource(folder, family, ids, size, [IMAGENET]) for family, (size, ids) in ANCHORS.items()]
    resources_file = write(folder / "models.yaml", *resources)
    with platform(resources_file) as running, Client(running.url, transport="grpc") as client:
        yield client


def resource(
    folder: Path, family: str, ids: range, size: tuple[int, int], preprocess: list[dict[str, Any]]
) -> dict[str, Any]:
    return model(
        family,
        folder / f"{family}.onnx",
        family=family,
        classes=[{"id": i, "name": f"class {i}"} for i in ids],
        preprocess=[{"resize": {"mode": "stretch", "height": size[0], "width": size[1]}}, *preprocess],
    )


def assert_same(result: Any, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> None:
    assert len(result) == len(scores) > 3
    np.testing.assert_allclose(result.scores, scores, atol=1e-4)
    assert result.class_ids.tolist() == classes.tolist()
    np.testing.assert_allclose(result.boxes, np.clip(boxes, 0, [size[1], size[0]] * 2), atol=0.02)


@pytest.mark.parametrize("family", YOLO)
def test_a_yolo_head_is_answered_as_by_its_project(served: Client, family: str) -> None:
    import torch

    from networks import yolo
    from networks.yolo import CLASSES, SIDE

    layout, with_masks = YOLO[family]
    photo = photograph(SIDE, SIDE)
    with torch.no_grad():
        head, *prototypes = yolo.Network(layout, with_masks)(torch.from_numpy(photo.transpose(2, 0, 1).copy())[None])
    rows = head[0].T if layout == "v8" else head[0]
    boxes, scores, classes, coefficients = yolo.chosen(rows, layout, CLASSES)

    result = served.segment(photo, model=family)

    assert isinstance(result, InstanceResult if with_masks else DetectionResult)
    assert_same(result, boxes.numpy(), scores.numpy(), classes.numpy(), (SIDE, SIDE))
    if isinstance(result, InstanceResult):
        expected = yolo.masks(coefficients, prototypes[0][0], boxes).numpy()
        assert (np.stack([found.mask for found in result]) == expected).mean() > 0.9999
        assert 0.01 < expected.mean() < 0.99


@pytest.mark.parametrize("family", ANCHORS)
def test_raw_heads_of_torchvision_are_answered_as_by_torchvision(
    served: Client, torchvision: Debian, family: str
) -> None:
    size, _ = ANCHORS[family]
    photo = photograph(*size)
    tensor = (photo / np.float32(255)).transpose(2, 0, 1).astype(np.float32)
    *_, (boxes, scores, classes) = torchvision.call("answer", family, 0, tensor)

    result = served.segment(photo, model=family)

    assert_same(result, boxes, scores, classes, size)
