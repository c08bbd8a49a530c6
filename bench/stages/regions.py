"""Cleaning of regions, compared with OpenCV, scipy and scikit-image; morphology (by OpenCV), compared with scipy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version

import cv2
import numpy as np
from scipy import ndimage
from skimage import measure

from bench.stages.case import Case, Peer
from segserve_builder.kernels.holes import fill_holes
from segserve_builder.kernels.regions import drop_small, keep_largest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.morphology import Morphology
from segserve_builder.values import LabelMap, Logits, ResizeTransform

SIDE = 2048
LEAST = 64
OPENCV = cv2.__version__
SCIPY = version("scipy")
BY_EDGES, BY_CORNERS = (ndimage.generate_binary_structure(2, order) for order in (1, 2))


def segmented(classes: int, seed: int) -> np.ndarray:
    """Return a smooth label map with 300 specks of up to 6 x 6 pixels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(classes, 12, 12)).astype(np.float32)
    labels = np.argmax([cv2.resize(layer, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for layer in logits], axis=0)
    for y, x, size, label in zip(*rng.integers(0, (SIDE, SIDE, 6, classes), (300, 4)).T, strict=True):
        labels[y : y + size + 1, x : x + size + 1] = label
    return labels.astype(np.uint8)


def noise() -> np.ndarray:
    return (np.random.default_rng(1).random((SIDE, SIDE)) < 0.5).astype(np.uint8)


def drop_by_opencv(labels: np.ndarray) -> np.ndarray:
    cleaned = np.zeros_like(labels)
    for label in np.flatnonzero(np.bincount(labels.ravel())[1:]) + 1:
        mask = labels if labels.max() == 1 else (labels == label).view(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        kept = (stats[:, cv2.CC_STAT_AREA] >= LEAST).astype(np.uint8) * np.uint8(label)
        kept[0] = 0
        cleaned += kept[parts]
    return cleaned


def drop_by_scipy(labels: np.ndarray) -> np.ndarray:
    parts, _ = ndimage.label(labels, BY_EDGES)
    kept = (np.bincount(parts.ravel()) >= LEAST).astype(np.uint8)
    kept[0] = 0
    return kept[parts]


def drop_by_skimage(labels: np.ndarray) -> np.ndarray:
    parts = measure.label(labels, connectivity=1)
    kept = (np.bincount(parts.ravel()) >= LEAST)[parts]
    return np.where(kept, labels, np.uint8(0))


def largest_by_scipy(labels: np.ndarray) -> np.ndarray:
    cleaned = np.zeros_like(labels)
    for label in np.flatnonzero(np.bincount(labels.ravel())[1:]) + 1:
        parts, _ = ndimage.label(labels == label, BY_EDGES)
        areas = np.bincount(parts.ravel())
        areas[0] = 0
        cleaned[parts == areas.argmax()] = label
    return cleaned


def fill_by_scipy(labels: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(labels, BY_EDGES).view(np.uint8)


def fill_by_opencv(labels: np.ndarray) -> np.ndarray:
    """Return the holes: what a flood from a frame around the image does not reach."""
    framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), 2, flags=4)
    return (framed[1:-1, 1:-1] != 2).view(np.uint8)


def open_by_scipy(labels: np.ndarray) -> np.ndarray:
    # Methods differ in what opening assumes beyond the edge: here nothing erodes from there, as in OpenCV.
    eroded = ndimage.binary_erosion(labels, np.ones((5, 5)), border_value=1)
    return ndimage.binary_dilation(eroded, np.ones((5, 5))).view(np.uint8)


def peer(
    name: str, release: str, ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], goal: float | None = None
) -> Peer:
    def agrees() -> str:
        expected = theirs()
        wrong = int(np.count_nonzero(ours() != expected))
        assert wrong == 0, wrong
        return f"0 of {expected.size / 1e6:.1f} M px differ"

    return Peer(name, release, theirs, agrees, goal)


def dropped(name: str, labels: np.ndarray, goal: float | None, *, worst: bool = False) -> Case:
    ours = partial(drop_small, labels, LEAST, 4)
    by_opencv = peer("OpenCV stats + lookup", OPENCV, ours, partial(drop_by_opencv, labels), goal)
    by_skimage = peer("scikit-image label + lookup", version("scikit-image"), ours, partial(drop_by_skimage, labels))
    peers = [by_opencv, by_skimage]
    if labels.max() == 1:
        peers.append(peer("scipy label + lookup", SCIPY, ours, partial(drop_by_scipy, labels)))
    return Case(f"regions < {LEAST} px dropped, {SIDE}x{SIDE}, {name}", ours, tuple(peers), worst)


def largest(name: str, labels: np.ndarray, *, worst: bool = False) -> Case:
    ours = partial(keep_largest, labels, 4)
    peers = (peer("scipy label + bincount", SCIPY, ours, partial(largest_by_scipy, labels)),)
    return Case(f"largest region kept, {SIDE}x{SIDE}, {name}", ours, peers, worst)


def filled(name: str, labels: np.ndarray, *, worst: bool = False) -> Case:
    ours = partial(fill_holes, labels, 8)
    peers = (
        peer("scipy binary_fill_holes", SCIPY, ours, partial(fill_by_scipy, labels)),
        peer("OpenCV floodFill", OPENCV, ours, partial(fill_by_opencv, labels)),
    )
    return Case(f"holes filled, {SIDE}x{SIDE}, {name}", ours, peers, worst)


def cases() -> Iterator[Case]:
    mask, many, worst = segmented(2, 0), segmented(21, 0), noise()
    yield dropped("one class", mask, 65)
    yield dropped("21 classes", many, None)
    yield dropped("noise", worst, 3.5, worst=True)
    yield largest("one class", mask)
    yield largest("21 classes", many)
    yield largest("noise", worst, worst=True)
    yield filled("one class", mask)
    yield filled("noise", worst, worst=True)
    value = LabelMap(mask, Logits(np.zeros((1, 1, 1), np.float32), ResizeTransform.of(SIDE, SIDE)))
    stage = Morphology(operation="open", radius=2, shape="square")
    by_scipy = peer("scipy", SCIPY, lambda: stage(value, RequestOptions()).labels, partial(open_by_scipy, mask))
    yield Case(
        f"opened with 5x5 by OpenCV, {SIDE}x{SIDE}, one class", lambda: stage(value, RequestOptions()), (by_scipy,)
    )
