"""UNet++ (Zhou et al. 2018): skips that are nested, dense decoders of their own; logits at half resolution."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import convolution, double, normalised, twice

WIDTHS = (20, 32, 48)


class UNetPlusPlus(nn.Module):
    """Images (B, 3, H, W) 0..255, H and W multiples of 16, to logits (B, classes, H / 2, W / 2).

    Node (i, j) is the j-th block at depth i: it sees all of its row before it, and its lower neighbour enlarged.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        one, two, three = WIDTHS
        self.stem = nn.Conv2d(3, one, 4, stride=2, padding=1)
        self.node00, self.node10, self.node20 = double(one, one), double(one, two), double(two, three)
        self.node01, self.node11 = convolution(one + two, one), convolution(two + three, two)
        self.node02 = double(2 * one + two, one)
        self.out = nn.Conv2d(one, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x00 = self.node00(functional.relu(self.stem(normalised(images))))
        x10 = self.node10(functional.max_pool2d(x00, 2))
        x20 = self.node20(functional.max_pool2d(x10, 2))
        x01 = self.node01(torch.cat([x00, twice(x10)], 1))
        x11 = self.node11(torch.cat([x10, twice(x20)], 1))
        logits: torch.Tensor = self.out(self.node02(torch.cat([x00, x01, twice(x11)], 1)))
        return logits
