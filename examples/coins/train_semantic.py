"""Trains the U-Net on drawn scenes and writes coins-unet.onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from scenes import draw_pool
from torch.nn import functional
from training import Optimiser, export, jitter, record, start
from unet import UNet

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCENES, SIZE, CROP, BATCH = 1500, 256, 160, 8
RATE = 4e-3
EXPORT_SIZE = (304, 384)


def target_of(labels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the coins without the line where two of them touch, and the weight of each pixel.

    The line is what keeps touching coins apart in the mask, so its few pixels weigh five times as much.
    """
    kernel = np.ones((3, 3), np.uint8)
    highest = np.stack([cv2.dilate(scene, kernel) for scene in labels])
    inverse = np.where(labels > 0, 255 - labels, 0).astype(np.uint8)
    lowest = 255 - np.stack([cv2.dilate(scene, kernel) for scene in inverse])
    contact = (labels > 0) & (highest != lowest)
    return ((labels > 0) & ~contact).astype(np.float32), 1 + 4 * contact.astype(np.float32)


def batch_of(rng: np.random.Generator, pool: tuple[NDArray[Any], ...]) -> list[torch.Tensor]:
    """Return images 0..255, targets and weights of random crops, each float32 (BATCH, 1, CROP, CROP)."""
    samples = []
    for index in rng.integers(0, len(pool[0]), BATCH):
        top, left = rng.integers(0, SIZE - CROP + 1, 2)
        crops = [array[index, top : top + CROP, left : left + CROP] for array in pool]
        if rng.random() < 0.5:
            crops = [crop[:, ::-1] for crop in crops]
        turns = int(rng.integers(4))
        image, target, weight = (np.rot90(crop, turns) for crop in crops)
        samples.append((jitter(rng, image), target, weight))
    return [torch.from_numpy(np.stack(arrays)[:, None].astype(np.float32)) for arrays in zip(*samples, strict=True)]


def loss_of(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return weighted cross entropy plus half the Dice loss."""
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    coin = torch.sigmoid(logits)
    dice = 1 - (2 * (coin * target).sum() + 1) / (coin.sum() + target.sum() + 1)
    return (cross_entropy * weight).mean() + 0.5 * dice


def main() -> None:
    """Draw, train, export."""
    run = start(str(__doc__), steps=900, out="coins-unet.onnx")
    images, labels = draw_pool(SCENES, SIZE, run.seed)
    pool = (images, *target_of(labels))
    network = UNet()
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimiser = Optimiser(network, RATE, run.steps)
    rng = np.random.default_rng(run.seed)
    for step in range(1, run.steps + 1):
        image, target, weight = batch_of(rng, pool)
        loss = loss_of(network(image.contiguous(memory_format=torch.channels_last)), target, weight)
        optimiser.step(loss)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    free = {0: "batch", 2: "height", 3: "width"}
    export(network, EXPORT_SIZE, run.out, {"image": free, "logits": free}, ["image"], ["logits"])
    record(run, network, (images, labels))


if __name__ == "__main__":
    main()
