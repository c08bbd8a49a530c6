"""Semantic logits, probabilities and labels through the real Triton: the answer is that of a few lines of torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from bench.coins import write
from bench.platform import platform
from networks.served import model, photograph
from segserve import Client, SemanticResult

if TYPE_CHECKING:
    import torch

    from networks.semantic import Semantic

pytestmark = pytest.mark.platform

HEIGHT, WIDTH = 100, 152
KEPT = {"mode": "keep", "multipleOf": 4}
STRETCHED = {"mode": "stretch", "height": 128, "width": 128}
# channels, stride of the logits, classes, resize, postprocess
MODELS: dict[str, tuple[int, int, int, dict[str, Any], list[dict[str, Any]]]] = {
    "full-resolution": (5, 1, 5, KEPT, []),
    "quarter-resolution": (5, 4, 5, STRETCHED, []),
    "align-corners": (5, 4, 5, KEPT, [{"argmax": {"alignCorners": True}}]),
    "one-channel": (1, 4, 2, STRETCHED, [{"argmax": {"threshold": 0.3}}]),
    "probabilities": (5, 4, 5, STRETCHED, []),
    "labels": (5, 1, 5, STRETCHED, []),
    "multi-label": (4, 1, 4, KEPT, [{"multiLabel": {"thresholds": [0.2, 0.4, 0.5, 0.9]}}]),
}


OTHER_FAMILIES = {"probabilities": "semantic-probabilities", "labels": "semantic-labels"}


def network(name: str, *, whole: bool = False) -> Semantic:
    """The network; the `whole` one does what its family expects to its logits."""
    from networks.semantic import Semantic

    channels, stride, *_ = MODELS[name]
    ends = {"probabilities": lambda logits: logits.softmax(1), "labels": lambda logits: logits.argmax(1, keepdim=True)}
    return Semantic(channels, stride, sorted(MODELS).index(name), ends.get(name) if whole else None)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("semantic")
    for name in MODELS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            network(name, whole=True).write(folder / f"{name}.onnx")
    resources = write(folder / "models.yaml", *(resource(folder, name) for name in MODELS))
    with platform(resources) as running, Client(running.url, transport="grpc") as client:
        yield client


def resource(folder: Path, name: str) -> dict[str, Any]:
    _, _, classes, resize, postprocess = MODELS[name]
    return model(
        name,
        folder / f"{name}.onnx",
        family=OTHER_FAMILIES.get(name, "semantic-logits"),
        classes=[{"id": i, "name": f"class {i}"} for i in range(classes)],
        preprocess=[{"resize": resize}],
        postprocess=postprocess,
    )


def logits(name: str, **interpolation: Any) -> torch.Tensor:
    """Logits (C, HEIGHT, WIDTH) that torch makes of the network's."""
    import torch

    seen = photograph(HEIGHT, WIDTH)
    if MODELS[name][3] is not KEPT:
        seen = cv2.resize(seen, (128, 128), interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        raw = network(name)(torch.from_numpy(seen.transpose(2, 0, 1).copy())[None])
    how = interpolation or {"mode": "bilinear", "align_corners": name == "align-corners"}
    return torch.nn.functional.interpolate(raw, (HEIGHT, WIDTH), **how)[0]


def test_labels_of_the_network_itself_are_those_of_the_nearest_cell(served: Client) -> None:
    expected = logits("labels", mode="nearest").argmax(0).numpy()

    result = served.segment(photograph(HEIGHT, WIDTH), model="labels", confidence=True)

    assert isinstance(result, SemanticResult)
    assert len(np.unique(expected)) > 2
    assert (result.labels != expected).sum() <= 1
    assert result.confidence is not None
    assert list(result.confidence.values()) == [float(area > 0) for area in result.areas.values()]


@pytest.mark.parametrize("name", ["full-resolution", "quarter-resolution", "align-corners", "probabilities"])
def test_labels_are_those_of_torchs_interpolate_and_argmax(served: Client, name: str) -> None:
    expected = logits(name).argmax(0).numpy()

    result = served.segment(photograph(HEIGHT, WIDTH), model=name)

    assert isinstance(result, SemanticResult)
    assert len(np.unique(expected)) > 2
    assert (result.labels != expected).sum() <= 1
    assert list(result.areas.values()) == np.bincount(result.labels.ravel(), minlength=5).tolist()


@pytest.mark.parametrize("name", ["quarter-resolution", "probabilities"])
def test_confidence_is_torchs_mean_softmax_over_the_class(served: Client, name: str) -> None:
    softmax = logits(name).softmax(0)
    labels = softmax.argmax(0)

    result = served.segment(photograph(HEIGHT, WIDTH), model=name, confidence=True)

    assert isinstance(result, SemanticResult)
    expected = [float(softmax[k][labels == k].mean()) if (labels == k).any() else 0.0 for k in range(5)]
    assert result.confidence is not None
    assert list(result.confidence.values()) == pytest.approx(expected, abs=1e-3)


def test_one_channel_is_the_second_class_above_its_threshold(served: Client) -> None:
    expected = (logits("one-channel")[0].sigmoid() > 0.3).numpy()

    result = served.segment(photograph(HEIGHT, WIDTH), model="one-channel")

    assert isinstance(result, SemanticResult)
    assert 0.05 < expected.mean() < 0.95
    assert (result.labels != expected).sum() <= 1


def test_masks_of_many_labels_overlap_each_above_its_own_threshold(served: Client) -> None:
    import torch

    thresholds = torch.tensor([0.2, 0.4, 0.5, 0.9])[:, None, None]
    expected = (logits("multi-label").sigmoid() > thresholds).numpy()

    result = served.segment(photograph(HEIGHT, WIDTH), model="multi-label")

    assert isinstance(result, SemanticResult)
    assert (expected.sum(0) > 1).any()
    assert (np.stack([result.mask(k) for k in range(4)]) != expected).sum() <= 1
