"""A one-stage network with the output layout of YOLO-seg."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import Backbone, convolution, normalised, twice

STRIDES = (4, 8, 16)
CHANNELS = (16, 28, 44, 56)
WIDTH = 40
COEFFICIENTS = 12
INPUT = 128


class Points(NamedTuple):
    """Where the network looks for objects: x, y and stride in pixels, each (N,), the finest level first."""

    x: torch.Tensor
    y: torch.Tensor
    stride: torch.Tensor


class Heads(NamedTuple):
    """What the network says about each of its N points, and the K prototypes that all masks share.

    `values` (B, 4 + C + K, N) are the distances to the box's left, top, right and bottom, in strides and before
    softplus; the classes' logits; the coefficients. Mask logits are coefficients times `prototypes` (B, K, h, w).
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


class TinyYoloSeg(nn.Module):
    """Images (B, 3, 128, 128) 0..255 to `Heads`; the prototypes are (B, 12, 64, 64)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.rows = 4 + classes + COEFFICIENTS
        self.backbone = Backbone(CHANNELS)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS[1:])
        self.smooth = nn.ModuleList(convolution(WIDTH, WIDTH) for _ in STRIDES)
        self.tower = nn.Sequential(convolution(WIDTH, WIDTH), convolution(WIDTH, WIDTH))
        self.predict = nn.Conv2d(WIDTH, self.rows, 1)
        last = nn.Conv2d(24, COEFFICIENTS, 3, 1, 1)
        self.prototypes = nn.Sequential(convolution(WIDTH + CHANNELS[0], 24), last)
        # A first guess of a small box and of few objects keeps the first steps of training from swinging.
        self.predict.bias = nn.Parameter(torch.tensor([1.0] * 4 + [-4.5] * classes + [0.0] * COEFFICIENTS))

    def forward(self, images: torch.Tensor) -> Heads:
        half, quarter, eighth, sixteenth = self.backbone(normalised(images))
        p16 = self.lateral[2](sixteenth)
        p8 = self.lateral[1](eighth) + twice(p16)
        p4 = self.lateral[0](quarter) + twice(p8)
        levels = [smooth(level) for smooth, level in zip(self.smooth, (p4, p8, p16), strict=True)]
        prototypes = self.prototypes(torch.cat([twice(levels[0]), half], 1))
        flat = [self.predict(self.tower(level)).flatten(2) for level in levels]
        return Heads(torch.cat(flat, 2), prototypes)


class YoloLayout(nn.Module):
    """The network as it is exported: images (B, 3, 128, 128) to output0 (B, 4 + C + K, N), output1 (B, K, 64, 64)."""

    centres: torch.Tensor
    stride: torch.Tensor

    def __init__(self, network: TinyYoloSeg) -> None:
        super().__init__()
        self.network = network
        points = points_of(INPUT)
        self.register_buffer("centres", torch.stack([points.x, points.y])[None])
        self.register_buffer("stride", points.stride)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return centre, size, scores 0..1 and coefficients per point; and the prototypes."""
        heads = self.network(images)
        distances = functional.softplus(heads.values[:, :4]) * self.stride
        before, after = distances[:, :2], distances[:, 2:]
        centres, sizes = self.centres + (after - before) * 0.5, before + after
        last = self.network.rows - COEFFICIENTS
        scores, coefficients = torch.sigmoid(heads.values[:, 4:last]), heads.values[:, last:]
        return torch.cat([centres, sizes, scores, coefficients], 1), heads.prototypes
