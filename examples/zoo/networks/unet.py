"""U-Net (Ronneberger et al. 2015): an encoder, a decoder, and skips between them; logits at full resolution."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import double, normalised, twice

WIDTHS = (16, 32, 48, 64)
FINE = 10


class FullResolution(nn.Module):
    """The last layers of a decoder that works at 1/2: twice the size, with the image's own pixels beside."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.larger = nn.ConvTranspose2d(channels, FINE, 4, stride=2, padding=1)
        self.fine = nn.Conv2d(FINE + 3, FINE, 3, padding=1)
        self.out = nn.Conv2d(FINE, classes, 3, padding=1)

    def forward(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        full = torch.cat([functional.relu(self.larger(features)), pixels], 1)
        logits: torch.Tensor = self.out(functional.relu(self.fine(full)))
        return logits


class UNet(nn.Module):
    """Images (B, 3, H, W) 0..255, H and W multiples of 16, to logits (B, classes, H, W)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.stem = nn.Conv2d(3, first, 4, stride=2, padding=1)
        self.down = nn.ModuleList([double(first, first), *(double(a, b) for a, b in pairwise(WIDTHS))])
        self.up = nn.ModuleList([double(a + b, a) for a, b in pairwise(WIDTHS)])
        self.head = FullResolution(first, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = normalised(images)
        features = functional.relu(self.stem(pixels))
        skips: list[torch.Tensor] = []
        for depth, block in enumerate(self.down):
            features = block(functional.max_pool2d(features, 2) if depth else features)
            skips.append(features)
        for skip, block in zip(reversed(skips[:-1]), reversed(self.up), strict=True):
            features = block(torch.cat([skip, twice(features)], 1))
        logits: torch.Tensor = self.head(features, pixels)
        return logits
