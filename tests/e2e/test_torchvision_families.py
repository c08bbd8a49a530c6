"""R-CNNs of torchvision through the real Triton: the answer is that of torchvision, whose Python is Debian's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.coins import write
from bench.platform import platform
from networks.served import model, photograph
from oracles.debian import Debian
from segserve import Client, DetectionResult, InstanceResult, KeypointResult
from tools import DEBIAN_PYTHON

pytestmark = [pytest.mark.platform, pytest.mark.needs("torchvision")]

ORACLES = Path(__file__).parents[1] / "oracles"
SEED = 7  # that of the exported networks
SIZE = (112, 150)
SCALED = [{"normalise": {"scale": 1 / 255}}]
# Labels are torchvision's own: the background is 0.
MODELS: dict[str, tuple[str, range, list[dict[str, Any]]]] = {
    "faster-rcnn": ("faster_rcnn", range(1, 4), []),
    "mask-rcnn": ("mask_rcnn", range(1, 4), []),
    "keypoint-rcnn": ("keypoint_rcnn", range(1, 2), []),
    "faster-rcnn-plain": ("faster_rcnn_plain", range(1, 4), SCALED),
}


@pytest.fixture(scope="module")
def torchvision() -> Iterator[Debian]:
    with Debian(ORACLES / "torchvision_ops.py") as debian:
        yield debian


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("torchvision")
    subprocess.run([DEBIAN_PYTHON, ORACLES / "export_torchvision.py", folder], check=True, timeout=120)
    resources = write(folder / "models.yaml", *(resource(folder, name) for name in MODELS))
    with platform(resources) as running, Client(running.url, transport="grpc") as client:
        yield client


def resource(folder: Path, name: str) -> dict[str, Any]:
    file, labels, preprocess = MODELS[name]
    return model(
        name,
        folder / f"{file}.onnx",
        family=name.removesuffix("-plain"),
        classes=[{"id": label, "name": f"label {label}"} for label in labels],
        preprocess=preprocess,
        runtime={"maxBatchSize": 1},
    )


def assert_same_detections(result: Any, expected: dict[str, Any], pixels: float = 0.01) -> None:
    assert len(result) == len(expected["scores"]) > 3
    np.testing.assert_allclose(result.scores, expected["scores"], atol=1e-4)
    np.testing.assert_allclose(result.boxes, expected["boxes"], atol=pixels)
    assert result.class_ids.tolist() == expected["labels"].tolist()


def test_boxes_of_faster_rcnn_are_torchvisions(served: Client, torchvision: Debian) -> None:
    expected = torchvision.call("whole", "faster", SEED, photograph(*SIZE), False)["answer"]

    result = served.segment(photograph(*SIZE), model="faster-rcnn")

    assert isinstance(result, DetectionResult)
    assert_same_detections(result, expected)


def test_masks_of_mask_rcnn_are_torchvisions(served: Client, torchvision: Debian) -> None:
    expected = torchvision.call("whole", "mask", SEED, photograph(*SIZE), False)["answer"]

    result = served.segment(photograph(*SIZE), model="mask-rcnn")

    assert isinstance(result, InstanceResult)
    assert_same_detections(result, expected)
    assert [found.rle["counts"] for found in result] == expected["masks"]
    assert 0.001 < np.mean([found.mask for found in result]) < 0.9


def test_points_of_keypoint_rcnn_are_torchvisions(served: Client, torchvision: Debian) -> None:
    expected = torchvision.call("whole", "keypoint", SEED, photograph(*SIZE), False)["answer"]

    result = served.segment(photograph(*SIZE), model="keypoint-rcnn")

    assert isinstance(result, KeypointResult)
    assert_same_detections(result, expected)
    # Of two cells that are equally high, the network's rounding decides.
    near = np.abs(result.points[..., :2] - expected["keypoints"][..., :2]).max(axis=2) < 0.05
    assert near.mean() > 0.95
    np.testing.assert_allclose(result.points[..., 2], expected["keypoints_scores"], rtol=1e-3, atol=1e-3)


def test_torchvisions_own_export_is_served_as_it_is(served: Client, torchvision: Debian) -> None:
    """The network resizes the image itself and answers in pixels of the image that it was given."""
    expected = torchvision.call("whole", "faster", SEED, photograph(*SIZE), True)["answer"]

    result = served.segment(photograph(*SIZE), model="faster-rcnn-plain")

    assert_same_detections(result, expected, pixels=0.05)
