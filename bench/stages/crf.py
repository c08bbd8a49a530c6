"""The CRF and the guided filter, compared with pydensecrf2 and OpenCV's box filter.

pydensecrf2 gets unary energies; ours gets logits, and returns log probabilities of every class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from bench.stages.case import Case, Peer
from oracles.densecrf import dense_crf, log_softmax, mean_iou, scene
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.crf import Crf
from segserve_builder.stages.guided_filter import GuidedFilter
from segserve_builder.values import Logits, ResizeTransform

ROOT = Path(__file__).parents[2]


SIDE = 512
EXACT, FAST, GUIDED = Crf(), Crf(mode="fast"), GuidedFilter()
LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255
SEEDS = (1, 2, 3)
"""Seeds of the images on which results are compared; the first one is measured."""


def cases() -> Iterator[Case]:
    for labels in (21, 2, 150):
        scenes = [scene(SIDE, SIDE, labels, seed) for seed in SEEDS]
        size = f"{SIDE}x{SIDE}x{labels}"
        for stage, goal in ((EXACT, 4), (FAST, 12)):
            name = f"CRF {stage.mode}, {size}, 5 iterations"
            yield _case(name, stage, scenes, _pydensecrf(), goal if labels == 21 else None)
    scenes = [scene(SIDE, SIDE, 21, seed) for seed in SEEDS]
    yield _case("guided filter, 512x512x21", GUIDED, scenes, _blurs())
    yield _case("guided filter, 512x512x21", GUIDED, scenes, _pydensecrf())
    rough = [scene(SIDE, SIDE, 21, seed, texture=25) for seed in SEEDS]
    yield _case("CRF exact, rough texture, 512x512x21", EXACT, rough, _pydensecrf(), worst=True)
    yield _case("CRF exact, noise, 512x512x21", EXACT, [_noise()], _pydensecrf(), worst=True)


Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
Other = tuple[str, str, "Callable[[np.ndarray, np.ndarray], Callable[[], np.ndarray]]", bool]
"""Name and version of each peer, the function that prepares its call, and whether its results should equal ours."""


def _case(
    name: str, stage: Stage, scenes: list[Scene], other: Other, goal: float | None = None, worst: bool = False
) -> Case:
    peer, its_version, prepared, same_answer = other
    runs = [partial(stage, _value(image, logits), RequestOptions()) for image, logits, _ in scenes]
    theirs = [prepared(image, logits) for image, logits, _ in scenes]
    exact = stage is EXACT or same_answer
    agrees = partial(_agreement, runs, theirs, scenes, exact)
    return Case(name, runs[0], (Peer(peer, its_version, theirs[0], agrees, goal),), worst)


def _agreement(
    runs: list[Callable[[], Logits]], theirs: list[Callable[[], np.ndarray]], scenes: list[Scene], exact: bool
) -> str:
    """Return how many labels agree, and how many pixels change at all: most never do."""
    same, changed, ious = [], [], []
    for run, their, (_, logits, truth) in zip(runs, theirs, scenes, strict=True):
        raw, own, other = logits.argmax(0), run().values.argmax(0), their().argmax(0)
        same.append((own == other).mean())
        changed.append((other != raw).mean())
        ious.append([mean_iou(labels, truth) for labels in (own, other, raw)])
    own_iou, other_iou, raw_iou = np.mean(ious, axis=0)
    assert min(same) >= 0.9999 or not exact, same
    return (
        f"{100 * min(same):.3f} % of pixels equal at least, where the peer changed {100 * np.mean(changed):.1f} %; "
        f"mIoU {own_iou:.4f}, peer {other_iou:.4f}, unrefined {raw_iou:.4f}"
    )


def _value(image: np.ndarray, logits: np.ndarray) -> Logits:
    return Logits(logits, ResizeTransform.of(*image.shape[:2]), guide=image)


def _pydensecrf() -> Other:
    def prepared(image: np.ndarray, logits: np.ndarray) -> Callable[[], np.ndarray]:
        return partial(dense_crf, image, -log_softmax(logits))

    return "pydensecrf2", version("pydensecrf2"), prepared, False


def _blurs() -> Other:
    def prepared(image: np.ndarray, logits: np.ndarray) -> Callable[[], np.ndarray]:
        return partial(_guided_by_blurs, image, np.exp(log_softmax(logits)))

    return "cv2.boxFilter", cv2.__version__, prepared, True


def _guided_by_blurs(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Apply the guided filter to every class with OpenCV's box filter, normalised for windows cut off at the edges."""
    guide = image.astype(np.float32) @ LUMA
    side = 2 * GUIDED.radius + 1

    def box(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT) * scale

    scale = np.float32(1)
    scale = 1 / box(np.ones_like(guide))
    mean = box(guide)
    inverse = 1 / (box(guide * guide) - mean * mean + np.float32(GUIDED.eps))
    out = np.empty_like(probabilities)
    for values, filtered in zip(probabilities, out, strict=True):
        average = box(values)
        slope = (box(guide * values) - mean * average) * inverse
        filtered[:] = box(slope) * guide + box(average - slope * mean)
    return out


def _noise() -> Scene:
    """Return the worst case: every pixel has its own colour, and every class is possible everywhere."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    truth = rng.integers(0, 21, (SIDE, SIDE))
    logits = rng.normal(size=(21, SIDE, SIDE)) + (np.arange(21)[:, None, None] == truth)
    return image, logits.astype(np.float32), truth
