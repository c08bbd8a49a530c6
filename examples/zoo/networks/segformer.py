"""SegFormer (Xie et al. 2021): attention over reduced keys at four resolutions, an all-MLP decoder; logits at 1/4."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import normalised, pointwise

INPUT = 128
WIDTHS, HEADS, REDUCTIONS = (24, 40, 64), (1, 2, 4), (4, 2, 1)
DECODER = 48


class Attention(nn.Module):
    """Self-attention over (B, N, C) whose keys and values are those of a grid `reduction` times coarser."""

    def __init__(self, channels: int, heads: int, grid: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.query, self.both = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction) if reduction > 1 else None
        self.out = nn.Linear(channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        channels = tokens.shape[2]
        coarse = tokens
        if self.reduce is not None:
            image = tokens.transpose(1, 2).reshape(-1, channels, self.grid, self.grid)
            coarse = self.reduce(image).flatten(2).transpose(1, 2)
        query = self._by_head(self.query(tokens))
        key, value = (self._by_head(part) for part in self.both(coarse).split(channels, 2))
        weights = torch.softmax(query @ key.transpose(2, 3) * (channels // self.heads) ** -0.5, 3)
        mixed: torch.Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed

    def _by_head(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MixBlock(nn.Module):
    """Attention, then an MLP that sees each token's neighbours through a 3 x 3 convolution by channel."""

    def __init__(self, channels: int, heads: int, grid: int, reduction: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, grid, reduction)
        self.wide, self.narrow = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)
        self.near = nn.Conv2d(3 * channels, 3 * channels, 3, 1, 1, groups=3 * channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        wide = self.wide(self.norm2(tokens)).transpose(1, 2)
        near = self.near(wide.unflatten(2, (self.grid, self.grid))).flatten(2).transpose(1, 2)
        mixed: torch.Tensor = tokens + self.narrow(functional.gelu(near))
        return mixed


class Stage(nn.Module):
    """Overlapping patches at a lower resolution, mixed by blocks."""

    def __init__(self, channels_in: int, index: int) -> None:
        super().__init__()
        channels, stride = WIDTHS[index], 4 if index == 0 else 2
        self.grid = INPUT // 2 ** (index + 2)
        self.embed = nn.Conv2d(channels_in, channels, 2 * stride - 1, stride, stride - 1)
        block = (channels, HEADS[index], self.grid, REDUCTIONS[index])
        self.norm = nn.LayerNorm(channels)
        self.blocks = nn.Sequential(MixBlock(*block), MixBlock(*block))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.embed(features).flatten(2).transpose(1, 2))
        mixed: torch.Tensor = self.blocks(tokens)
        return mixed.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class SegFormer(nn.Module):
    """Images (B, 128, 128, 3) 0..255, the channels last, to logits (B, classes, 32, 32)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Stage(a, i) for i, a in enumerate((3, *WIDTHS[:-1]))])
        self.narrow = nn.ModuleList(nn.Conv2d(channels, DECODER, 1) for channels in WIDTHS)
        self.out = nn.Sequential(pointwise(len(WIDTHS) * DECODER, DECODER), nn.Conv2d(DECODER, classes, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features, views = normalised(images).permute(0, 3, 1, 2), []
        grid = (INPUT // 4, INPUT // 4)
        for stage, narrow in zip(self.stages, self.narrow, strict=True):
            features = stage(features)
            views.append(functional.interpolate(narrow(features), size=grid, mode="bilinear", align_corners=False))
        logits: torch.Tensor = self.out(torch.cat(views, 1))
        return logits
