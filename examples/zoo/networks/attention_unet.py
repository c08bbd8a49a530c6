"""Attention U-Net (Oktay et al. 2018): what passes a skip is gated by the features from below."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import double, normalised, twice
from examples.zoo.networks.unet import WIDTHS, FullResolution


class Gate(nn.Module):
    """Additive attention: weighs each pixel of a skip by how well it goes with the larger view from below."""

    def __init__(self, skip: int, below: int) -> None:
        super().__init__()
        inner = skip // 2
        self.of_skip = nn.Conv2d(skip, inner, 1)
        self.of_below = nn.Conv2d(below, inner, 1)
        self.weight = nn.Conv2d(inner, 1, 1)

    def forward(self, skip: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        together = functional.relu(self.of_skip(skip) + self.of_below(below))
        return skip * torch.sigmoid(self.weight(together))


class AttentionUNet(nn.Module):
    """Images (B, 3, H, W) 0..255, H and W multiples of 16, to logits (B, classes, H, W)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.stem = nn.Conv2d(3, first, 4, stride=2, padding=1)
        self.down = nn.ModuleList([double(first, first), *(double(a, b) for a, b in pairwise(WIDTHS))])
        self.gates = nn.ModuleList([Gate(a, b) for a, b in pairwise(WIDTHS)])
        self.up = nn.ModuleList([double(a + b, a) for a, b in pairwise(WIDTHS)])
        self.head = FullResolution(first, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = normalised(images)
        features = functional.relu(self.stem(pixels))
        skips: list[torch.Tensor] = []
        for depth, block in enumerate(self.down):
            features = block(functional.max_pool2d(features, 2) if depth else features)
            skips.append(features)
        levels = zip(reversed(skips[:-1]), reversed(self.gates), reversed(self.up), strict=True)
        for skip, gate, block in levels:
            larger = twice(features)
            features = block(torch.cat([gate(skip, larger), larger], 1))
        logits: torch.Tensor = self.head(features, pixels)
        return logits
