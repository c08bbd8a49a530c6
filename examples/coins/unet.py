"""The semantic network: a small U-Net with its stem and head at half resolution."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

CHANNELS = (12, 24, 40, 64)
FINE = 8
MEAN, DEVIATION = 102.0, 63.75


def double_convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return two convolutions of 3 x 3, each normalised by the batch."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Grey images (N, 1, H, W) 0..255, H and W multiples of 16, to logits (N, 1, H, W); > 0 is coin."""

    def __init__(self) -> None:
        super().__init__()
        first = CHANNELS[0]
        self.stem = nn.Conv2d(1, first, 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            [double_convolution(first, first), *(double_convolution(a, b) for a, b in pairwise(CHANNELS))]
        )
        self.up = nn.ModuleList([double_convolution(a + b, a) for a, b in pairwise(CHANNELS)])
        self.head = nn.ConvTranspose2d(first, FINE, 4, stride=2, padding=1)
        self.fine = nn.Conv2d(FINE + 1, FINE, 3, padding=1)
        self.out = nn.Conv2d(FINE, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise, encode, decode; the last layers see the full-resolution image again for sharp edges."""
        pixels = (image.float() - MEAN) * (1 / DEVIATION)
        features = functional.relu(self.stem(pixels))
        skips: list[torch.Tensor] = []
        for depth, block in enumerate(self.down):
            features = block(functional.max_pool2d(features, 2) if depth else features)
            skips.append(features)
        for skip, block in zip(reversed(skips[:-1]), reversed(self.up), strict=True):
            larger = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = block(torch.cat([skip, larger], 1))
        full = torch.cat([functional.relu(self.head(features)), pixels], 1)
        logits: torch.Tensor = self.out(functional.relu(self.fine(full)))
        return logits
