"""How well masks agree with the truth of the photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

HERE = Path(__file__).parent
FOUND_IOU = 0.75


@dataclass(frozen=True, slots=True)
class SemanticScore:
    """Agreement of one mask with all coins: its IoU, and how many connected parts it has."""

    iou: float
    parts: int

    @property
    def good(self) -> bool:
        """Whether it is what the example promises."""
        return self.iou >= 0.95 and self.parts == 24


@dataclass(frozen=True, slots=True)
class InstanceScore:
    """Coins found at an IoU of 0.75, masks that found none, and the mean over all coins of the best IoU."""

    found: int
    false: int
    mean_iou: float

    @property
    def good(self) -> bool:
        """Whether it is what the example promises."""
        return self.found == 24 and self.false <= 1 and self.mean_iou >= 0.95


def photograph() -> NDArray[np.uint8]:
    """Return the photograph, grey uint8 (303, 384)."""
    return np.asarray(cv2.imread(str(HERE / "coins.png"), cv2.IMREAD_GRAYSCALE), np.uint8)


def truth() -> NDArray[np.uint8]:
    """Return its checked label map, uint8 (303, 384): 0 is the table, 1 to 24 are the coins."""
    return np.asarray(cv2.imread(str(HERE / "truth.png"), cv2.IMREAD_GRAYSCALE), np.uint8)


def score_semantic(mask: NDArray[Any], labels: NDArray[np.uint8]) -> SemanticScore:
    """Score one mask (H, W), nonzero where there is coin, against a label map."""
    coin, true = mask.astype(bool), labels > 0
    regions, _ = cv2.connectedComponents(coin.astype(np.uint8), connectivity=4)
    return SemanticScore(float((coin & true).sum() / (coin | true).sum()), regions - 1)


def score_instances(masks: Sequence[NDArray[Any]], labels: NDArray[np.uint8]) -> InstanceScore:
    """Score masks (H, W) of single coins against a label map; each mask counts for one coin at most."""
    count = int(labels.max())
    overlap = np.zeros((len(masks), count))
    for row, mask in zip(overlap, (mask.astype(bool) for mask in masks), strict=True):
        inter = np.bincount(labels[mask], minlength=count + 1)[1:]
        row[:] = inter / (mask.sum() + np.bincount(labels.ravel(), minlength=count + 1)[1:] - inter)
    best = _one_to_one(overlap)
    found = int((best >= FOUND_IOU).sum())
    return InstanceScore(found, len(masks) - found, float(best.mean()))


def _one_to_one(overlap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each coin's IoU with the mask that it is paired with, best pairs first; 0 without one."""
    left = overlap.copy()
    best = np.zeros(left.shape[1])
    for _ in range(min(left.shape)):
        mask, coin = np.unravel_index(left.argmax(), left.shape)
        best[coin] = left[mask, coin]
        left[mask, :] = left[:, coin] = 0
    return best
