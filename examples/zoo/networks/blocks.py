"""What the zoo's networks are made of."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

MEAN, DEVIATION = 127.5, 64.0


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return images 0..255 of any dtype as float32 around 0; it is part of every network's graph."""
    return (images.float() - MEAN) * (1 / DEVIATION)


def convolution(channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def pointwise(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a 1 x 1 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
    )


def double(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return two convolutions, as U-Nets have them at every level."""
    return nn.Sequential(convolution(channels_in, channels_out), convolution(channels_out, channels_out))


def twice(features: torch.Tensor) -> torch.Tensor:
    """Return features of twice the height and width, each cell repeated."""
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")


class Residual(nn.Module):
    """Two convolutions beside the identity; `stride` and `channels_in` may differ, then with a 1 x 1 beside."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, stride, dilation)
        self.second = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(channels_out)
        )
        same = channels_in == channels_out and stride == 1
        self.beside = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.beside(features) + self.second(self.first(features)))


class Backbone(nn.Module):
    """A small residual network: features at 1/2, 1/4, 1/8 and so on, with `channels` each."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, channels[0], 2), convolution(channels[0], channels[0]))
        self.stages = nn.ModuleList(nn.Sequential(Residual(a, b, 2), Residual(b, b)) for a, b in pairwise(channels))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        features = [self.stem(pixels)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features
