"""The instance network: a small one-stage network with the output layout of YOLO-seg."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transform import YOLO_SIZE
from unet import DEVIATION, MEAN

STRIDES = (8, 16, 32)
WIDTH = 48
COEFFICIENTS = 16
VALUES = 4 + 1 + COEFFICIENTS


class Points(NamedTuple):
    """Where the network looks for coins: x, y and stride in pixels, each (N,), the finest level first."""

    x: torch.Tensor
    y: torch.Tensor
    stride: torch.Tensor


class Heads(NamedTuple):
    """What the network says about each of its N points, and the K prototypes that all masks share.

    `values` (B, 4 + 1 + K, N) are the distances to the box's left, top, right and bottom, in strides and
    before softplus; the score's logit; the coefficients. A coin's mask logits are its coefficients times
    `prototypes` (B, K, h, w).
    """

    values: torch.Tensor
    prototypes: torch.Tensor


def points_of(size: int) -> Points:
    """Return the points of an image of size x size pixels."""
    levels = []
    for stride in STRIDES:
        centres = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        levels.append((x.reshape(-1), y.reshape(-1), torch.full((x.numel(),), float(stride))))
    return Points(*(torch.cat(values) for values in zip(*levels, strict=True)))


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def double(features: torch.Tensor) -> torch.Tensor:
    """Return features of twice the height and width, each cell repeated."""
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.body = nn.Sequential(convolution(channels, channels), second, nn.BatchNorm2d(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.relu(features + self.body(features))


class TinyYoloSeg(nn.Module):
    """Grey images (B, 1, size, size) 0..255, `size` a multiple of 32, to `Heads`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(1, 12, 2), convolution(12, 24, 2), convolution(24, 24))
        self.stage8 = nn.Sequential(convolution(24, 48, 2), Residual(48))
        self.stage16 = nn.Sequential(convolution(48, 64, 2), Residual(64))
        self.stage32 = nn.Sequential(convolution(64, 80, 2), Residual(80))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in (48, 64, 80))
        self.smooth = nn.ModuleList(convolution(WIDTH, WIDTH) for _ in STRIDES)
        self.tower = nn.Sequential(convolution(WIDTH, WIDTH), convolution(WIDTH, WIDTH))
        self.predict = nn.Conv2d(WIDTH, VALUES, 1)
        last = nn.Conv2d(32, COEFFICIENTS, 3, 1, 1)
        self.prototypes = nn.Sequential(convolution(WIDTH + 24, 32), last)
        # A first guess of a small box and of few coins keeps the first steps of training from swinging.
        self.predict.bias = nn.Parameter(torch.tensor([1.5] * 4 + [-4.0] + [0.0] * COEFFICIENTS))

    def forward(self, image: torch.Tensor, size: int) -> Heads:
        """Normalise, then a feature pyramid with one head shared by its three levels.

        `size` is asked for because an image's own shape would be traced into the exported graph.
        """
        quarter = self.stem((image.float() - MEAN) * (1 / DEVIATION))
        c8 = self.stage8(quarter)
        c16 = self.stage16(c8)
        c32 = self.stage32(c16)
        p32 = self.lateral[2](c32)
        p16 = self.lateral[1](c16) + double(p32)
        p8 = self.lateral[0](c8) + double(p16)
        levels = [smooth(level) for smooth, level in zip(self.smooth, (p8, p16, p32), strict=True)]
        prototypes = self.prototypes(torch.cat([double(levels[0]), quarter], 1))
        dense = [self.predict(self.tower(level)) for level in levels]
        flat = [value.reshape(-1, VALUES, (size // s) ** 2) for value, s in zip(dense, STRIDES, strict=True)]
        return Heads(torch.cat(flat, 2), prototypes)


class YoloLayout(nn.Module):
    """The network as it is exported.

    Images (B, 1, 384, 384) give output0 (B, 21, N) and output1 (B, 16, 96, 96).
    """

    centres: torch.Tensor
    stride: torch.Tensor

    def __init__(self, network: TinyYoloSeg) -> None:
        super().__init__()
        self.network = network
        points = points_of(YOLO_SIZE)
        self.register_buffer("centres", torch.stack([points.x, points.y])[None])
        self.register_buffer("stride", points.stride)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return centre, size, score 0..1 and coefficients per point; and the prototypes."""
        heads = self.network(images, YOLO_SIZE)
        distances = functional.softplus(heads.values[:, :4]) * self.stride
        before, after = distances[:, :2], distances[:, 2:]
        centres, sizes = self.centres + (after - before) * 0.5, before + after
        score, coefficients = torch.sigmoid(heads.values[:, 4:5]), heads.values[:, 5:]
        return torch.cat([centres, sizes, score, coefficients], 1), heads.prototypes
