"""pydensecrf2 as an oracle and a peer, and textured images whose labels are known."""

from __future__ import annotations

import cv2
import numpy as np


def scene(
    height: int, width: int, labels: int, seed: int, texture: float = 8.0, error: float = 4.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image uint8 (H, W, 3), logits float32 (C, H, W) that are wrong at places, and the truth (H, W).

    Four of the labels are there; they differ in colour, under a texture and a shade.
    """
    rng = np.random.default_rng(seed)

    def noise(sigma: float, *shape: int) -> np.ndarray:
        smooth = cv2.GaussianBlur(rng.normal(size=(height, width, *shape)).astype(np.float32), (0, 0), sigma)
        return (smooth / smooth.std()).reshape(height, width, *shape)

    present = rng.choice(labels, min(4, labels), replace=False)
    truth = present[np.argmax([noise(width / 14) for _ in present], axis=0)]
    colours = rng.integers(30, 226, (labels, 3)).astype(np.float32)
    painted = colours[truth] + texture * noise(1.5, 3) + 10 * noise(25, 1) + rng.normal(size=(height, width, 3)) * 3
    image = np.clip(painted, 0, 255).astype(np.uint8)
    logits = np.stack([error * noise(5) - 30 for _ in range(labels)])
    for label in present:
        logits[label] += 30 + 12 * cv2.GaussianBlur((truth == label).astype(np.float32), (0, 0), 3)
    return image, logits.astype(np.float32), truth


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(0)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(0))
    return result


def dense_crf(image: np.ndarray, unary: np.ndarray, iterations: int = 5, **terms: float) -> np.ndarray:
    """Probabilities (C, H, W) of pydensecrf's mean field; `unary` (C, H, W) are negative log probabilities."""
    from pydensecrf.densecrf import DIAG_KERNEL, NORMALIZE_SYMMETRIC, DenseCRF2D

    labels, height, width = unary.shape
    at = {"sxy": 80.0, "rgb": 13.0, "bilateral": 10.0, "near": 3.0, "gaussian": 3.0} | terms
    how = {"kernel": DIAG_KERNEL, "normalization": NORMALIZE_SYMMETRIC}
    crf = DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), np.float32))
    crf.addPairwiseGaussian(sxy=at["near"], compat=at["gaussian"], **how)
    crf.addPairwiseBilateral(sxy=at["sxy"], srgb=at["rgb"], rgbim=image, compat=at["bilateral"], **how)
    return np.array(crf.inference(iterations)).reshape(unary.shape)


def mean_iou(labels: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the truth's labels of intersection over union."""
    both = [((labels == k) & (truth == k)).sum() / ((labels == k) | (truth == k)).sum() for k in np.unique(truth)]
    return float(np.mean(both))
