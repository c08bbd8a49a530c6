"""How the one-stage network is taught: which point answers for which object, and what its heads cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from examples.zoo.networks.yolo import COEFFICIENTS, INPUT, STRIDES, points_of
from examples.zoo.training import Optimiser, batch_of, objects_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.zoo.networks.yolo import Heads, Points, TinyYoloSeg
    from examples.zoo.training import Objects, Run
    from examples.zoo.world import Scene

RATE = 4e-3
BOX_WEIGHT, MASK_WEIGHT = 1.5, 2.5
MASKS_A_STEP = 128
BACKGROUND, IGNORED = -1, -2
# The longer sides, in pixels, of the objects that the points of each stride answer for.
SIDES = ((0.0, 20.0), (16.0, 40.0), (32.0, 1e9))
# A point answers for an object whose centre is within 0.8 strides; up to 1.2 it is not taught either way.
NEAR, UNDECIDED = 0.8, 1.2
NOWHERE = 99.0


def assign(boxes: torch.Tensor, points: Points) -> torch.Tensor:
    """Return for each point (N,) the index of its object, or BACKGROUND, or IGNORED."""
    owner = torch.full(points.x.shape, BACKGROUND)
    if not len(boxes):
        return owner
    left, top, right, bottom = boxes.unbind(1)
    x, y, stride = points.x[:, None], points.y[:, None], points.stride[:, None]
    distance = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs()) / stride
    side = torch.maximum(right - left, bottom - top)
    limits = dict(zip(STRIDES, SIDES, strict=True))
    least, most = torch.tensor([limits[int(s)] for s in points.stride]).T[..., None]
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    nearest, index = distance.where(inside & (side >= least) & (side < most), torch.tensor(NOWHERE)).min(1)
    owner[nearest < UNDECIDED] = IGNORED
    return owner.where(nearest >= NEAR, index)


def loss_of(heads: Heads, scenes: Sequence[Objects], points: Points) -> torch.Tensor:
    """Return the weighted sum of the losses of scores, boxes and masks."""
    owner = torch.stack([assign(scene.boxes, points) for scene in scenes])
    scene, point = (owner >= 0).nonzero(as_tuple=True)
    pairs = list(zip(scene.tolist(), owner[scene, point].tolist(), strict=True))
    target = torch.zeros_like(heads.values[:, 4:-COEFFICIENTS])
    if not pairs:
        return score_loss(heads.values[:, 4:-COEFFICIENTS], target, owner)
    target[scene, torch.stack([scenes[s].classes[thing] for s, thing in pairs]), point] = 1
    loss = score_loss(heads.values[:, 4:-COEFFICIENTS], target, owner)
    values = heads.values[scene, :, point]
    boxes = torch.stack([scenes[s].boxes[thing] for s, thing in pairs])
    x, y = points.x[point], points.y[point]
    wanted = torch.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], 1)
    distances = functional.softplus(values[:, :4]) * points.stride[point, None]
    loss = loss + BOX_WEIGHT * box_loss(distances, wanted)
    chosen = torch.randperm(len(pairs))[:MASKS_A_STEP]
    masks = torch.stack([scenes[s].masks[thing] for s, thing in (pairs[index] for index in chosen.tolist())])
    logits = torch.einsum("pc,pchw->phw", values[chosen, -COEFFICIENTS:], heads.prototypes[scene[chosen]])
    return loss + MASK_WEIGHT * mask_loss(logits, functional.avg_pool2d(masks, 2), boxes[chosen] / 2)


def score_loss(logits: torch.Tensor, target: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Return the focal loss of the scores (B, C, N), per point that answers for an object."""
    error = (target - torch.sigmoid(logits)).abs().pow(2) * torch.where(target > 0, 2.0, 1.0)
    focal = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * error
    return focal.sum(1)[owner != IGNORED].sum() / (owner >= 0).sum().clamp(min=1)


def box_loss(distances: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the generalised IoU loss of boxes given by their sides' distances (P, 4) from one point each."""
    shared, hull = torch.minimum(distances, wanted), torch.maximum(distances, wanted)
    area, true_area, inter, hull_area = (
        (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (distances, wanted, shared, hull)
    )
    union = area + true_area - inter
    return (1 - inter / union + (hull_area - union) / hull_area).mean()


def mask_loss(logits: torch.Tensor, masks: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of masks (P, h, w) within their boxes (P, 4) and one cell around."""
    rows, columns = (torch.arange(length) + 0.5 for length in masks.shape[1:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    left, top, right, bottom = boxes.T[..., None, None]
    crop = ((x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none") * crop
    loss: torch.Tensor = (entropy.sum((1, 2)) / crop.sum((1, 2))).mean()
    return loss


def teach(network: TinyYoloSeg, scenes: Sequence[Scene], run: Run) -> None:
    """Train `network` in place."""
    network.train()
    optimiser, rng, points = Optimiser(network, RATE, run), np.random.default_rng(run.seed), points_of(INPUT)
    for _ in range(run.steps):
        images, batch = batch_of(rng, scenes)
        optimiser.step(loss_of(network(images), [objects_of(scene) for scene in batch], points))
