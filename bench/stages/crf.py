"""The CRF, compared with pydensecrf2.

pydensecrf2 gets unary energies; ours gets logits, and returns log probabilities of every class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bench.stages.case import Case, Peer
from oracles.densecrf import dense_crf, log_softmax, mean_iou, scene
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.crf import Crf
from segserve_builder.values import Logits, ResizeTransform

ROOT = Path(__file__).parents[2]


SIDE = 512
SEEDS = (1, 2, 3)
"""Seeds of the images on which results are compared; the first one is measured."""


def cases() -> Iterator[Case]:
    for labels in (21, 2, 150):
        scenes = [scene(SIDE, SIDE, labels, seed) for seed in SEEDS]
        yield _case(f"CRF, {SIDE}x{SIDE}x{labels}, 5 iterations", scenes, goal=4 if labels == 21 else None)
    rough = [scene(SIDE, SIDE, 21, seed, texture=25) for seed in SEEDS]
    yield _case("CRF, rough texture, 512x512x21", rough, worst=True)
    yield _case("CRF, noise, 512x512x21", [_noise()], worst=True)


Scene = tuple[np.ndarray, np.ndarray, np.ndarray]


def _case(name: str, scenes: list[Scene], goal: float | None = None, worst: bool = False) -> Case:
    runs = [partial(Crf(), _value(image, logits), RequestOptions()) for image, logits, _ in scenes]
    theirs = [partial(dense_crf, image, -log_softmax(logits)) for image, logits, _ in scenes]
    peer = Peer("pydensecrf2", version("pydensecrf2"), theirs[0], partial(_agreement, runs, theirs, scenes), goal)
    return Case(name, runs[0], (peer,), worst)


def _agreement(runs: list[Callable[[], Logits]], theirs: list[Callable[[], np.ndarray]], scenes: list[Scene]) -> str:
    """Return how many labels agree, and how many pixels change at all: most never do."""
    same, changed, ious = [], [], []
    for run, their, (_, logits, truth) in zip(runs, theirs, scenes, strict=True):
        raw, own, other = logits.argmax(0), run().values.argmax(0), their().argmax(0)
        same.append((own == other).mean())
        changed.append((other != raw).mean())
        ious.append([mean_iou(labels, truth) for labels in (own, other, raw)])
    own_iou, other_iou, raw_iou = np.mean(ious, axis=0)
    assert min(same) >= 0.9999, same
    return (
        f"{100 * min(same):.3f} % of pixels equal at least, where the peer changed {100 * np.mean(changed):.1f} %; "
        f"mIoU {own_iou:.4f}, peer {other_iou:.4f}, unrefined {raw_iou:.4f}"
    )


def _value(image: np.ndarray, logits: np.ndarray) -> Logits:
    return Logits(logits, ResizeTransform.of(*image.shape[:2]), guide=image)


def _noise() -> Scene:
    """Return the worst case: every pixel has its own colour, and every class is possible everywhere."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    truth = rng.integers(0, 21, (SIDE, SIDE))
    logits = rng.normal(size=(21, SIDE, SIDE)) + (np.arange(21)[:, None, None] == truth)
    return image, logits.astype(np.float32), truth
