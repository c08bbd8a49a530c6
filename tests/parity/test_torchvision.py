"""Pasting, key points and whole R-CNNs against torchvision, which runs in Debian's Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from oracles.debian import Debian
from segserve_builder.kernels.keypoints import keypoints
from segserve_builder.kernels.paste import paste_rles

ORACLES = Path(__file__).parents[1] / "oracles"
pytestmark = [
    pytest.mark.needs("torchvision"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools, numpy 2
]


@pytest.fixture(scope="module")
def torchvision() -> Iterator[Debian]:
    with Debian(ORACLES / "torchvision_ops.py") as debian:
        yield debian


def pixels(counts: Any, height: int, width: int) -> np.ndarray:
    return np.array([coco.decode({"size": [height, width], "counts": c}) for c in counts]).reshape(-1, height, width)


def boxes(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """Boxes within the image, as torchvision clips them; it refuses others."""
    corner = rng.uniform(-0.2, 1, (n, 2)) * (width, height)
    size = np.exp(rng.uniform(-4, 0.3, (n, 2))) * (width, height)
    found = np.concatenate([corner, corner + size], axis=1)
    return np.clip(found, 0, [width, height, width, height]).astype(np.float32)


def test_pasted_masks_are_torchvisions_but_for_one_pixel_in_a_million(torchvision: Debian) -> None:
    rng = np.random.default_rng(0)
    wrong = total = same = strings = 0
    for side in (1, 2, 7, 14, 28, 28, 28, 30, 56):
        height, width = rng.integers(1, 500, 2).tolist()
        masks, found = rng.random((25, side, side)).astype(np.float32), boxes(rng, 25, height, width)

        counts = paste_rles(masks, found, height, width)

        expected = torchvision.call("paste_rles", masks, found, height, width)
        same += sum(a == b for a, b in zip(counts, expected, strict=True))
        strings += len(counts)
        wrong += int(np.count_nonzero(pixels(counts, height, width) != pixels(expected, height, width)))
        total += 25 * height * width
    assert wrong <= 1e-6 * total
    assert same >= 0.98 * strings


def test_key_points_are_torchvisions_but_for_equal_values(torchvision: Debian) -> None:
    rng = np.random.default_rng(1)
    for side in (3, 14, 28, 56, 56):
        heatmaps, found = rng.normal(size=(6, 5, side, side)).astype(np.float32), boxes(rng, 6, 300, 300)

        points = keypoints(heatmaps, found)

        expected, logits = torchvision.call("keypoints", heatmaps, found)
        np.testing.assert_allclose(points[..., 2], logits, atol=1e-5)
        apart = np.abs(points[..., :2] - expected[..., :2]).max(axis=2) > 1e-3
        assert apart.sum() <= 1
