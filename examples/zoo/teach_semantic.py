"""How the semantic networks are taught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from examples.zoo.training import Optimiser, batch_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from examples.zoo.training import Run
    from examples.zoo.world import Scene

# Ground is most of every scene, stars are rare.
CLASS_WEIGHTS = (0.4, 1.0, 1.0, 1.5, 2.0)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return weighted cross entropy plus the Dice loss, the mean of the classes there, at the labels' resolution."""
    full = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    entropy = functional.cross_entropy(full, labels, torch.tensor(CLASS_WEIGHTS))
    chance = torch.softmax(full, 1)
    truth = functional.one_hot(labels, full.shape[1]).permute(0, 3, 1, 2).float()
    overlap, sizes = (chance * truth).sum((0, 2, 3)), (chance + truth).sum((0, 2, 3))
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    return entropy + 0.5 * dice[truth.sum((0, 2, 3)) > 0].mean()


def teach(network: nn.Module, scenes: Sequence[Scene], run: Run, rate: float, *, channels_last: bool = False) -> None:
    """Train `network` in place."""
    network.train()
    optimiser, rng = Optimiser(network, rate, run), np.random.default_rng(run.seed)
    for _ in range(run.steps):
        images, batch = batch_of(rng, scenes)
        labels = torch.from_numpy(np.stack([scene.labels for scene in batch]).astype(np.int64))
        optimiser.step(loss_of(network(images.permute(0, 2, 3, 1) if channels_last else images), labels))
