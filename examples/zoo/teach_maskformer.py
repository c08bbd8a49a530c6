"""How the network of queries is taught: each object goes to the query that suits it best (Hungarian matching)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from examples.zoo.centres import heat_loss, heats_of
from examples.zoo.networks.maskformer import INPUT, STRIDE
from examples.zoo.training import Optimiser, batch_of, objects_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.zoo.networks.maskformer import Answers, TinyMaskFormer
    from examples.zoo.training import Objects, Run
    from examples.zoo.world import Scene

RATE = 3e-3
NOTHING_WEIGHT = 0.2
ENTROPY_WEIGHT, DICE_WEIGHT = 4.0, 2.0


def segments_of(scene: Objects) -> tuple[torch.Tensor, torch.Tensor]:
    """Return classes (S,) and masks (S, 64, 64) of a scene's segments: the ground, class 0, then the objects."""
    ground = 1 - scene.masks.amax(0, keepdim=True)
    masks = functional.avg_pool2d(torch.cat([ground, scene.masks]), 2)
    return torch.cat([torch.zeros(1, dtype=torch.long), scene.classes + 1]), masks


def entropies(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of every query's mask (Q, P) with every segment's (S, P), by pixel: (Q, S)."""
    return (functional.softplus(logits).sum(1, keepdim=True) - logits @ masks.T) / logits.shape[1]


def dices(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the Dice loss of every query's mask (Q, P) with every segment's (S, P): (Q, S)."""
    chance = torch.sigmoid(logits)
    return 1 - (2 * chance @ masks.T + 1) / (chance.sum(1)[:, None] + masks.sum(1) + 1)


def layer_loss(
    classes: torch.Tensor, masks: torch.Tensor, segments: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Return the loss of one layer's answers about a batch."""
    nothing = classes.shape[2] - 1
    wanted = torch.full(classes.shape[:2], nothing)
    mask_losses, count = [], 0
    for index, (kinds, truth) in enumerate(segments):
        pixels = truth.flatten(1)
        cost_masks = ENTROPY_WEIGHT * entropies(masks[index].flatten(1), pixels)
        cost_masks = cost_masks + DICE_WEIGHT * dices(masks[index].flatten(1), pixels)
        cost = cost_masks.detach() - torch.softmax(classes[index].detach(), 1)[:, kinds]
        query, segment = (torch.from_numpy(side) for side in linear_sum_assignment(cost.numpy()))
        wanted[index, query] = kinds[segment]
        mask_losses.append(cost_masks[query, segment].sum())
        count += len(query)
    weights = torch.ones(nothing + 1)
    weights[nothing] = NOTHING_WEIGHT
    entropy = functional.cross_entropy(classes.flatten(0, 1), wanted.flatten(), weights)
    return entropy + torch.stack(mask_losses).sum() / count


def loss_of(answers: Answers, scenes: Sequence[Objects]) -> torch.Tensor:
    """Return the loss of the centres and of every layer."""
    heat, _ = heats_of(scenes, INPUT, STRIDE)
    segments = [segments_of(scene) for scene in scenes]
    layers = zip(answers.classes, answers.masks, strict=True)
    return heat_loss(answers.heat, heat) + sum(layer_loss(*layer, segments) for layer in layers)


def teach(network: TinyMaskFormer, scenes: Sequence[Scene], run: Run) -> None:
    """Train `network` in place."""
    network.train()
    optimiser, rng = Optimiser(network, RATE, run), np.random.default_rng(run.seed)
    for _ in range(run.steps):
        images, batch = batch_of(rng, scenes)
        optimiser.step(loss_of(network.answers(images), [objects_of(scene) for scene in batch]))
