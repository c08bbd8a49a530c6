"""Tiles and views of an image inside the real Triton, against the same computed with torch and ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc

from bench.coins import variant, write
from bench.platform import MODELS, Running, platform
from examples.coins.score import photograph

if TYPE_CHECKING:
    import torch

    Network = Callable[[torch.Tensor], torch.Tensor]

pytestmark = pytest.mark.platform

GREY = photograph()[:200, :240]
TILE, STEP = 128, 64
TILES = {"tile": {"height": TILE, "width": TILE, "overlap": 0.5, "multipleOf": 16}}
VIEWS = {"tta": {"flips": ["horizontal"], "rotations": [90], "scales": [0.5], "multipleOf": 16}}
MODELS_BY_STEPS: dict[str, list[dict[str, Any]]] = {
    "tiles": [TILES],
    "views": [VIEWS],
    "tiles-of-views": [VIEWS, TILES],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = [
        variant(name=name, inference=steps, postprocess=[{"argmax": {}}], output={"encoding": "raw"})
        for name, steps in MODELS_BY_STEPS.items()
    ]
    for model in models:
        del model["spec"]["golden"]  # its answers are those of the network over the whole image
    path = write(Path(tmp_path_factory.mktemp("steps")) / "model.yaml", *models)
    with platform(path) as running:
        yield running


@pytest.fixture(scope="module")
def network() -> Network:
    import torch

    session = onnxruntime.InferenceSession(str(MODELS.parent / "coins-unet.onnx"))
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.contiguous().numpy()})[0])


def padded() -> torch.Tensor:
    """The image as preprocess leaves it: a multiple of 16, its last pixels repeated."""
    import torch

    height, width = (-side % 16 for side in GREY.shape)
    return torch.from_numpy(np.pad(GREY, ((0, height), (0, width)), "edge"))[None, None]


def over_tiles(network: Network) -> Network:
    """The definition of tile: Gaussian weights, at least 0.001; beyond the image is its mirror image."""
    import torch
    from torch.nn import functional

    distance = torch.arange(TILE) - (TILE - 1) / 2
    curve = torch.exp(-(distance**2) / (2 * (TILE / 8) ** 2))
    weight = (curve[:, None] * curve).clamp(min=1e-3)

    def starts(side: int) -> list[int]:
        last = -(-max(side - TILE, 0) // 16) * 16
        return [*range(0, last, STEP), last]

    def call(image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        rows, columns = starts(height), starts(width)
        # An image smaller than a tile lies in its middle, at a multiple of 16.
        top, left = (max(TILE - side, 0) // 2 // 16 * 16 for side in (height, width))
        below = max(rows[-1] + TILE - height - top, 0)
        right = max(columns[-1] + TILE - width - left, 0)
        whole = functional.pad(image.float(), (left, right, top, below), mode="reflect").to(image.dtype)
        total, weights = torch.zeros(whole.shape), torch.zeros(whole.shape)
        for y in rows:
            for x in columns:
                there = (slice(None), slice(None), slice(y, y + TILE), slice(x, x + TILE))
                total[there] += network(whole[there]) * weight
                weights[there] += weight
        return (total / weights)[:, :, top : top + height, left : left + width]

    return call


def over_views(network: Network) -> Network:
    """The definition of tta: the mean of all views' logits, turned back and resampled."""
    import torch
    from torch.nn import functional

    def call(image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        half = [max(1, round(side * 0.5 / 16)) * 16 for side in (height, width)]
        small = functional.interpolate(image.float(), half, mode="bilinear", align_corners=False).round()
        answers = []
        for scaled in (image, small.to(image.dtype)):
            for mirrored in ((), (3,)):
                for turns in (0, 1):
                    view = torch.rot90(scaled.flip(mirrored), turns, (2, 3))
                    there = torch.rot90(network(view), -turns, (2, 3)).flip(mirrored)
                    answers.append(functional.interpolate(there, (height, width), mode="bilinear", align_corners=False))
        return torch.stack(answers).mean(0)

    return call


DEFINITIONS: dict[str, Callable[[Network], Network]] = {
    "tiles": over_tiles,
    "views": over_views,
    "tiles-of-views": lambda network: over_views(over_tiles(network)),
}


@pytest.mark.parametrize("model", DEFINITIONS)
def test_served_labels_are_those_computed_offline(served: Running, network: Network, model: str) -> None:
    tensor = tritonclient.grpc.InferInput("PIXELS", [*GREY.shape, 1], "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(GREY[..., None]))
    with tritonclient.grpc.InferenceServerClient(served.url.removeprefix("http://")) as client:
        answer = client.infer(model, [tensor])
    labels = np.frombuffer(answer.as_numpy("LABELS")[0], np.uint8).reshape(GREY.shape)

    logits = DEFINITIONS[model](network)(padded())[0, 0, : GREY.shape[0], : GREY.shape[1]].numpy()
    alone = network(padded())[0, 0, : GREY.shape[0], : GREY.shape[1]].numpy()

    # Resampled uint8 pixels may differ by one where a sum falls between two of them.
    assert (labels != (logits > 0)).mean() < 5e-4
    assert ((logits > 0) != (alone > 0)).any()  # the steps did something
