"""Trains the two-stage network on drawn scenes and writes coins-twostage.onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scenes import draw_pool
from torch.nn import functional
from train_instance import SCENES, SIZE, batch_of
from training import Optimiser, export, record, start
from transform import YOLO_SIZE
from twostage import MASK_SIZE, STRIDE, TinyMaskRcnn, box_iou, region_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from targets import Coins
    from training import Run
    from twostage import Views

RATE = 3e-3
MASK_WEIGHT = 1.5
PROPOSED, MOVED = 24, 12  # regions of a scene that are taught: the network's own, and true ones moved a little
MASKS_A_SCENE = 6
POSITIVE = 0.5


def heat_of(coins: Coins) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the heat (h, w) with a peak of 1 at each coin's centre, and the coin of each warm cell, else -1."""
    wide = SIZE // STRIDE
    heat, owner = torch.zeros(wide, wide), torch.full((wide, wide), -1)
    at = (torch.arange(wide) + 0.5) * STRIDE
    for index, (x1, y1, x2, y2) in enumerate(coins.boxes.tolist()):
        x, y, spread = (x1 + x2) / 2, (y1 + y2) / 2, max(3.0, 0.12 * min(x2 - x1, y2 - y1))
        peak = torch.exp(-((at - x) ** 2 + (at - y)[:, None] ** 2) / (2 * spread**2))
        peak[min(wide - 1, int(y / STRIDE)), min(wide - 1, int(x / STRIDE))] = 1
        heat = torch.maximum(heat, peak)
        owner[peak > 0.5] = index
    return heat, owner


def proposal_loss(views: Views, scenes: list[Coins]) -> torch.Tensor:
    """Return the focal loss of the centres and the IoU loss of the boxes around them."""
    heats, owners = zip(*(heat_of(scene) for scene in scenes), strict=True)
    heat, owner = torch.stack(heats), torch.stack(owners)
    chance, centre = torch.sigmoid(views.heat), heat == 1
    hit = (1 - chance) ** 2 * functional.logsigmoid(views.heat)
    miss = (1 - heat) ** 4 * chance**2 * functional.logsigmoid(-views.heat)
    loss = -torch.where(centre, hit, miss).sum() / centre.sum().clamp(min=1)
    scene, row, column = (owner >= 0).nonzero(as_tuple=True)
    if not len(scene):
        return loss
    pairs = zip(scene.tolist(), owner[scene, row, column].tolist(), strict=True)
    boxes = torch.stack([scenes[index].boxes[coin] for index, coin in pairs])
    x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
    wanted = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], 1).clamp(min=1)
    sides = views.sides[scene, :, row, column]
    shared, hull = torch.minimum(sides, wanted), torch.maximum(sides, wanted)
    inter, outer = ((d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (shared, hull))
    return loss + 1 - (inter / outer).mean()


def moved_boxes(boxes: torch.Tensor) -> torch.Tensor:
    """Return MOVED true boxes (N, 4) moved a little, or boxes of nothing where there is none."""
    if len(boxes):
        boxes = boxes[torch.randint(len(boxes), (MOVED,))]
        sides = boxes[:, 2:] - boxes[:, :2]
        boxes = boxes + torch.cat([sides, sides], 1) * torch.randn_like(boxes) * 0.1
    else:
        corner = torch.rand(MOVED, 2) * SIZE * 0.4
        boxes = torch.cat([corner, corner + 8 + torch.rand(MOVED, 2) * SIZE * 0.4], 1)
    boxes = boxes.clamp(0, SIZE)
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 4)], 1)


def region_loss(network: TinyMaskRcnn, views: Views, scenes: list[Coins]) -> torch.Tensor:
    """Return the losses of the second stage: coin or not, refined boxes, masks."""
    proposed = network.proposals(views, SIZE, PROPOSED).detach()
    regions = torch.cat([proposed, torch.stack([moved_boxes(scene.boxes) for scene in scenes])], 1)
    overlap, owner = torch.zeros(regions.shape[:2]), torch.zeros(regions.shape[:2], dtype=torch.long)
    for index, scene in enumerate(scenes):
        if len(scene.boxes):
            overlap[index], owner[index] = box_iou(regions[index], scene.boxes).max(1)
    logits, refined = network.refined(views.features, regions, SIZE)
    positive = overlap > POSITIVE
    loss = functional.binary_cross_entropy_with_logits(logits, positive.float())
    scene, region = positive.nonzero(as_tuple=True)
    if not len(scene):
        return loss
    true = torch.stack([scenes[s].boxes[owner[s, r]] for s, r in zip(scene.tolist(), region.tolist(), strict=True)])
    loss = loss + 1 - box_iou(refined[scene, region][:, None], true[:, None]).mean()
    return loss + MASK_WEIGHT * mask_loss(network, views, scenes, (refined.detach(), positive, owner))


def mask_loss(
    network: TinyMaskRcnn, views: Views, scenes: list[Coins], regions: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return the cross entropy of the masks of a few regions of each scene.

    `regions` are boxes (B, K, 4), whether each is of a coin, and of which.
    """
    boxes, positive, owner = regions
    chosen = torch.multinomial(positive.float() + 1e-9, MASKS_A_SCENE)
    picked = torch.gather(boxes, 1, chosen[..., None].expand(-1, -1, 4))
    logits = network.masks(views.features, picked, SIZE)
    nothing = torch.zeros(1, SIZE // 4, SIZE // 4)
    coins = torch.gather(owner, 1, chosen)
    truth = torch.cat([torch.cat([scene.masks, nothing])[which] for scene, which in zip(scenes, coins, strict=True)])
    grid = region_grid(picked.reshape(-1, 1, 4), SIZE, MASK_SIZE)
    target = functional.grid_sample(truth[:, None], grid, align_corners=False)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    valid = torch.gather(positive, 1, chosen).flatten()
    loss: torch.Tensor = (entropy * valid).sum() / valid.sum().clamp(min=1)
    return loss


def train(network: TinyMaskRcnn, pool: tuple[NDArray[np.uint8], NDArray[np.uint8]], run: Run) -> None:
    """Train `network` in place on the images and labels of `pool`."""
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimiser, rng = Optimiser(network, RATE, run.steps), np.random.default_rng(run.seed)
    for step in range(1, run.steps + 1):
        images, coins = batch_of(rng, *pool)
        views = network.views(images.contiguous(memory_format=torch.channels_last))
        loss = proposal_loss(views, coins) + region_loss(network, views, coins)
        optimiser.step(loss)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Draw, train, export."""
    run = start(str(__doc__), steps=1500, out="coins-twostage.onnx")
    pool = draw_pool(SCENES, SIZE, run.seed)
    network = TinyMaskRcnn()
    train(network, pool, run)
    export(network, (YOLO_SIZE, YOLO_SIZE), run.out, {}, ["image"], ["boxes", "labels", "scores", "masks"])
    record(run, network, pool)


if __name__ == "__main__":
    main()
