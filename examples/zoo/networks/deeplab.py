"""DeepLab v3+ (Chen et al. 2018): dilated convolutions in parallel, then a light decoder; logits at 1/4."""

from __future__ import annotations

import torch
from torch import nn

from examples.zoo.networks.blocks import Backbone, Residual, convolution, normalised, pointwise, twice

WIDTH = 40


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: one input seen at several dilations and as a whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = pointwise(channels, WIDTH)
        self.dilated = nn.ModuleList(convolution(channels, WIDTH, dilation=rate) for rate in (2, 4, 6))
        self.whole = nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.ReLU(inplace=True))
        self.out = pointwise(4 * WIDTH, WIDTH)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branches = [self.narrow(features), *(branch(features) for branch in self.dilated)]
        # Added, not concatenated: a mean over the image has no size to be enlarged to.
        mixed: torch.Tensor = self.out(torch.cat(branches, 1)) + self.whole(features.mean((2, 3), keepdim=True))
        return mixed


class DeepLab(nn.Module):
    """Images (B, 3, H, W) 0..255, H and W multiples of 16, to logits (B, classes, H / 4, W / 4)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone((16, 32, 48))
        self.aspp = Aspp(48)
        self.low = pointwise(32 + 16, 24)
        self.fold = nn.Conv2d(16, 16, 2, stride=2)
        self.decode = nn.Sequential(convolution(WIDTH + 24, 48), Residual(48, 48), nn.Conv2d(48, classes, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        half, quarter, eighth = self.backbone(normalised(images))
        low = self.low(torch.cat([quarter, self.fold(half)], 1))
        logits: torch.Tensor = self.decode(torch.cat([twice(self.aspp(eighth)), low], 1))
        return logits
