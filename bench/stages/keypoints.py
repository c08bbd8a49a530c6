"""Heat maps of a Keypoint R-CNN to points, compared with torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.stages.case import Case, Peer
from bench.stages.paste import random_boxes
from oracles.debian import Debian
from segserve_builder.kernels.keypoints import keypoints

ROOT = Path(__file__).parents[2]


SIDE = 56
POINTS = 17


def heatmaps(n: int, seed: int, noise: float) -> np.ndarray:
    """Return heat maps with one peak each, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = rng.uniform(0, SIDE, (2, n, POINTS, 1, 1))
    bump = 10 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 18)
    return (bump + rng.normal(0, noise, (n, POINTS, SIDE, SIDE))).astype(np.float32)


def torchvision(debian: Debian, maps: np.ndarray, boxes: np.ndarray) -> Peer:
    def agrees() -> str:
        ours, (theirs, logits) = keypoints(maps, boxes), debian.call("keypoints", maps, boxes)
        assert np.abs(ours[..., 2] - logits).max() < 1e-4
        same = np.abs(ours[..., :2] - theirs[..., :2]).max(axis=2) < 1e-3
        assert same.mean() > 0.999
        return f"{np.count_nonzero(same)}/{same.size} points equal"

    return Peer("torchvision", "0.14.1", partial(debian.again_s, "keypoints"), agrees)


def cases() -> Iterator[Case]:
    boxes = random_boxes(30, 800, 1333, 1)
    smooth, noise = heatmaps(30, 0, 0.3), heatmaps(30, 0, 10)
    name = f"30 x {POINTS} heat maps {SIDE}x{SIDE} to points"
    with Debian(ROOT / "tests/oracles/torchvision_ops.py") as debian:
        yield Case(name, partial(keypoints, smooth, boxes), (torchvision(debian, smooth, boxes),))
        yield Case(f"{name}, noise", partial(keypoints, noise, boxes), (torchvision(debian, noise, boxes),), worst=True)
