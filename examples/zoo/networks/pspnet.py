"""PSPNet (Zhao et al. 2017): pooled views of the whole image beside each cell; logits at 1/4 of a fixed input."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import Residual, convolution, normalised, pointwise

BINS = (1, 2, 4, 8)
INPUT = 128
GRID = INPUT // 4


class PspNet(nn.Module):
    """Images (B, 3, 128, 128) 0..255 to logits (B, classes, 32, 32)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 20, 2), convolution(20, 20), Residual(20, 48, 2))
        self.body = nn.Sequential(Residual(48, 48), Residual(48, 48, dilation=2), Residual(48, 48, dilation=4))
        self.views = nn.ModuleList(pointwise(48, 12) for _ in BINS)
        self.out = nn.Sequential(convolution(48 + 12 * len(BINS), 48), nn.Conv2d(48, classes, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(self.stem(normalised(images)))
        pyramid = [features]
        for bins, view in zip(BINS, self.views, strict=True):
            pooled = view(functional.avg_pool2d(features, GRID // bins))
            pyramid.append(functional.interpolate(pooled, size=(GRID, GRID), mode="bilinear", align_corners=False))
        logits: torch.Tensor = self.out(torch.cat(pyramid, 1))
        return logits
