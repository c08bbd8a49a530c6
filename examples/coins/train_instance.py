"""Trains the instance network on drawn scenes and writes coins-yolo.onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scenes import draw_pool
from targets import IGNORED, Coins, assign, coins_of
from torch.nn import functional
from training import Optimiser, export, jitter, record, start
from transform import YOLO_PADDING, YOLO_SIZE
from yolo import TinyYoloSeg, YoloLayout, points_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from training import Run
    from yolo import Heads, Points

SCENES, SIZE, BATCH = 2000, 256, 8
RATE = 3e-3
BOX_WEIGHT, MASK_WEIGHT = 1.5, 2.5
MASKS_A_STEP = 160


def batch_of(
    rng: np.random.Generator, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[torch.Tensor, list[Coins]]:
    """Return turned and jittered images 0..255, float32 (BATCH, 1, SIZE, SIZE), and the coins of each."""
    batch, coins = [], []
    for index in rng.integers(0, len(images), BATCH):
        image, label = images[index].copy(), labels[index].copy()
        bars = np.zeros(image.shape, bool)
        if rng.random() < 0.35:
            top, bottom = rng.integers(0, SIZE // 5, 2)
            bars[:top] = bars[SIZE - bottom :] = True
            label[bars] = 0
        pixels = np.where(bars, np.float32(YOLO_PADDING), jitter(rng, image))
        if rng.random() < 0.5:
            pixels, label = pixels[:, ::-1], label[:, ::-1]
        turns = int(rng.integers(4))
        batch.append(np.rot90(pixels, turns))
        coins.append(coins_of(np.ascontiguousarray(np.rot90(label, turns))))
    return torch.from_numpy(np.stack(batch)[:, None].astype(np.float32)), coins


def loss_of(heads: Heads, coins: list[Coins], points: Points) -> torch.Tensor:
    """Return the weighted sum of the losses of scores, boxes and masks."""
    owner = torch.stack([assign(scene, points) for scene in coins])
    scene, point = (owner >= 0).nonzero(as_tuple=True)
    loss = score_loss(heads.values[:, 4], owner)
    if not len(scene):
        return loss
    pairs = list(zip(scene.tolist(), owner[scene, point].tolist(), strict=True))
    values = heads.values[scene, :, point]
    boxes = torch.stack([coins[s].boxes[coin] for s, coin in pairs])
    x, y = points.x[point], points.y[point]
    wanted = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], 1)
    distances = functional.softplus(values[:, :4]) * points.stride[point, None]
    chosen = torch.randperm(len(scene))[:MASKS_A_STEP]
    masks = torch.stack([coins[s].masks[coin] for s, coin in (pairs[index] for index in chosen.tolist())])
    logits = torch.einsum("pc,pchw->phw", values[chosen, 5:], heads.prototypes[scene[chosen]])
    loss = loss + BOX_WEIGHT * box_loss(distances, wanted)
    return loss + MASK_WEIGHT * mask_loss(logits, masks, boxes[chosen] / 4)


def score_loss(logits: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Return the focal loss of the scores, per point that answers for a coin."""
    positive = owner >= 0
    target = positive.float()
    error = (target - torch.sigmoid(logits)).abs().pow(2) * torch.where(positive, 2.0, 1.0)
    focal = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * error
    return focal[owner != IGNORED].sum() / positive.sum().clamp(min=1)


def box_loss(distances: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the generalised IoU loss of boxes given by their sides' distances (P, 4) from one point each."""
    shared, hull = torch.minimum(distances, wanted), torch.maximum(distances, wanted)
    area, true_area, inter, hull_area = (
        (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (distances, wanted, shared, hull)
    )
    union = area + true_area - inter
    return (1 - inter / union + (hull_area - union) / hull_area).mean()


def mask_loss(logits: torch.Tensor, masks: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of masks (P, h, w) within their boxes (P, 4) and one pixel around."""
    rows, columns = (torch.arange(length) + 0.5 for length in masks.shape[1:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    left, top, right, bottom = boxes.T[..., None, None]
    crop = ((x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none") * crop
    loss: torch.Tensor = (entropy.sum((1, 2)) / crop.sum((1, 2))).mean()
    return loss


def train(network: TinyYoloSeg, pool: tuple[NDArray[np.uint8], NDArray[np.uint8]], run: Run) -> None:
    """Train `network` in place on the images and labels of `pool`."""
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimiser = Optimiser(network, RATE, run.steps)
    rng, points = np.random.default_rng(run.seed), points_of(SIZE)
    for step in range(1, run.steps + 1):
        batch, coins = batch_of(rng, *pool)
        loss = loss_of(network(batch.contiguous(memory_format=torch.channels_last), SIZE), coins, points)
        optimiser.step(loss)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Draw, train, export."""
    run = start(str(__doc__), steps=1500, out="coins-yolo.onnx")
    pool = draw_pool(SCENES, SIZE, run.seed)
    network = TinyYoloSeg()
    train(network, pool, run)
    names = ["output0", "output1"]
    free = {name: {0: "batch"} for name in ("images", *names)}
    export(YoloLayout(network), (YOLO_SIZE, YOLO_SIZE), run.out, free, ["images"], names)
    record(run, network, pool)


if __name__ == "__main__":
    main()
