"""The heat map of objects' centres, which two of the networks start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.zoo.training import Objects


def heat_of(scene: Objects, size: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the heat (h, w) with a peak of 1 at each object's centre, and the object of each warm cell, else -1."""
    wide = size // stride
    heat, owner = torch.zeros(wide, wide), torch.full((wide, wide), -1)
    at = (torch.arange(wide) + 0.5) * stride
    for index, (x1, y1, x2, y2) in enumerate(scene.boxes.tolist()):
        x, y, spread = (x1 + x2) / 2, (y1 + y2) / 2, max(0.45 * stride, 0.1 * min(x2 - x1, y2 - y1))
        peak = torch.exp(-((at - x) ** 2 + (at - y)[:, None] ** 2) / (2 * spread**2))
        peak[min(wide - 1, int(y / stride)), min(wide - 1, int(x / stride))] = 1
        heat = torch.maximum(heat, peak)
        owner[peak > 0.5] = index
    return heat, owner


def heats_of(scenes: Sequence[Objects], size: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both for several scenes, (B, h, w)."""
    heats, owners = zip(*(heat_of(scene, size, stride) for scene in scenes), strict=True)
    return torch.stack(heats), torch.stack(owners)


def heat_loss(logits: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """Return CornerNet's focal loss, by object."""
    chance, centre = torch.sigmoid(logits), heat == 1
    hit = (1 - chance) ** 2 * functional.logsigmoid(logits)
    miss = (1 - heat) ** 4 * chance**2 * functional.logsigmoid(-logits)
    return -torch.where(centre, hit, miss).sum() / centre.sum().clamp(min=1)
