"""How the two-stage network is taught: where centres are, which regions show what, and their masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from examples.zoo.centres import heat_loss, heats_of
from examples.zoo.networks.mask_rcnn import INPUT, MASK_SIZE, STRIDE
from examples.zoo.networks.regions import box_iou, region_grid
from examples.zoo.training import Optimiser, batch_of, objects_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.zoo.networks.mask_rcnn import TinyMaskRcnn, Views
    from examples.zoo.training import Objects, Run
    from examples.zoo.world import Scene

RATE = 3e-3
MASK_WEIGHT = 1.5
PROPOSED, JITTERED = 20, 12  # regions a scene that are taught: the network's own, and true ones moved a little
MASKS_A_SCENE = 6
POSITIVE = 0.5


def proposal_loss(views: Views, scenes: Sequence[Objects]) -> torch.Tensor:
    """Return the focal loss of the centres and the IoU loss of the boxes around them."""
    heat, owner = heats_of(scenes, INPUT, STRIDE)
    loss = heat_loss(views.heat, heat)
    scene, row, column = (owner >= 0).nonzero(as_tuple=True)
    pairs = zip(scene.tolist(), owner[scene, row, column].tolist(), strict=True)
    boxes = torch.stack([scenes[index].boxes[thing] for index, thing in pairs])
    x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
    wanted = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], 1).clamp(min=1)
    sides = views.sides[scene, :, row, column]
    shared, hull = torch.minimum(sides, wanted), torch.maximum(sides, wanted)
    inter, outer = ((d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (shared, hull))
    return loss + 1 - (inter / outer).mean()


def regions_of(network: TinyMaskRcnn, views: Views, scenes: Sequence[Objects]) -> torch.Tensor:
    """Return boxes (B, K, 4) for the second stage: the network's own, and true ones moved a little."""
    moved = []
    for scene in scenes:
        boxes = scene.boxes[torch.randint(len(scene.boxes), (JITTERED,))]
        size = boxes[:, 2:] - boxes[:, :2]
        boxes = (boxes + torch.cat([size, size], 1) * torch.randn_like(boxes) * 0.1).clamp(0, INPUT)
        moved.append(torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 3)], 1))
    return torch.cat([network.proposals(views, PROPOSED), torch.stack(moved)], 1).detach()


def region_loss(network: TinyMaskRcnn, views: Views, scenes: Sequence[Objects]) -> torch.Tensor:
    """Return the losses of the second stage: classes, refined boxes, masks."""
    regions = regions_of(network, views, scenes)
    best = [box_iou(boxes, scene.boxes).max(1) for boxes, scene in zip(regions, scenes, strict=True)]
    overlap, owner = torch.stack([b.values for b in best]), torch.stack([b.indices for b in best])
    logits, refined = network.refined(views.features, regions)
    positive = overlap > POSITIVE
    classes = torch.stack([scene.classes[which] + 1 for scene, which in zip(scenes, owner, strict=True)])
    loss = functional.cross_entropy(logits.flatten(0, 1), classes.where(positive, torch.tensor(0)).flatten())
    true = torch.stack([scene.boxes[which] for scene, which in zip(scenes, owner, strict=True)])
    iou = box_iou(refined[positive][:, None], true[positive][:, None])
    loss = loss + 1 - iou.mean()
    return loss + MASK_WEIGHT * mask_loss(network, views, scenes, refined.detach(), positive, owner)


def mask_loss(
    network: TinyMaskRcnn,
    views: Views,
    scenes: Sequence[Objects],
    boxes: torch.Tensor,
    positive: torch.Tensor,
    owner: torch.Tensor,
) -> torch.Tensor:
    """Return the cross entropy of the masks of a few regions of each scene."""
    chosen = torch.multinomial(positive.float() + 1e-9, MASKS_A_SCENE)
    picked = torch.gather(boxes, 1, chosen[..., None].expand(-1, -1, 4))
    logits = network.masks(views.features, picked)
    truth = torch.cat([scene.masks[which] for scene, which in zip(scenes, torch.gather(owner, 1, chosen), strict=True)])
    grid = region_grid(picked.reshape(-1, 1, 4), INPUT, MASK_SIZE)
    target = functional.grid_sample(truth[:, None], grid, align_corners=False)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    valid = torch.gather(positive, 1, chosen).flatten()
    return (entropy * valid).sum() / valid.sum().clamp(min=1)


def teach(network: TinyMaskRcnn, scenes: Sequence[Scene], run: Run) -> None:
    """Train `network` in place."""
    network.train()
    optimiser, rng = Optimiser(network, RATE, run), np.random.default_rng(run.seed)
    for _ in range(run.steps):
        images, batch = batch_of(rng, scenes)
        objects = [objects_of(scene) for scene in batch]
        views = network.views(images)
        optimiser.step(proposal_loss(views, objects) + region_loss(network, views, objects))
