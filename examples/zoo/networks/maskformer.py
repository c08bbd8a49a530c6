"""A transformer of queries with the output layout of MaskFormer (Cheng et al. 2021).

Queries start where a heat map of centres is high, which a small network learns sooner than queries without a place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import Backbone, convolution, normalised, twice

INPUT, STRIDE = 128, 4
PLACED, FREE = 24, 2  # queries that start at a place, and those of the ground, which has none
CHANNELS = (16, 24, 40, 56)
WIDTH, HEADS, LAYERS = 48, 4, 2
EMBEDDING = 16
REACH = 16.0  # pixels in which a query's place is felt


class Answers(NamedTuple):
    """Class logits (B, Q, C + 1), the last is nothing, and mask logits (B, Q, 64, 64), after each layer; the heat."""

    classes: list[torch.Tensor]
    masks: list[torch.Tensor]
    heat: torch.Tensor


def place_code(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines (..., WIDTH) of places in pixels."""
    rates = 2 * torch.pi / (8.0 * 1.6 ** torch.arange(WIDTH // 4, dtype=torch.float32))
    angles = [place[..., None] * rates for place in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], -1)


def cell_centres(stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y in pixels of the cells (h * w,) of a grid over the input."""
    at = (torch.arange(INPUT // stride, dtype=torch.float32) + 0.5) * stride
    y, x = torch.meshgrid(at, at, indexing="ij")
    return x.flatten(), y.flatten()


class Attention(nn.Module):
    """Multi-head attention of (B, N, C) over (B, M, C), written out so that the exported graph stays small."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        apart = [
            linear(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for linear, tokens in ((self.query, query), (self.key, key), (self.value, value))
        ]
        weights = torch.softmax(apart[0] @ apart[1].transpose(2, 3) * (WIDTH // HEADS) ** -0.5, 3)
        mixed: torch.Tensor = self.out((weights @ apart[2]).transpose(1, 2).flatten(2))
        return mixed


class DecoderLayer(nn.Module):
    """Queries look at the image, at each other, and think."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.among = Attention(), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.think = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(inplace=True), nn.Linear(2 * WIDTH, WIDTH))

    def forward(
        self, queries: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor, code: torch.Tensor
    ) -> torch.Tensor:
        queries = self.norms[0](queries + self.across(queries + places, tokens + code, tokens))
        placed = queries + places
        queries = self.norms[1](queries + self.among(placed, placed, queries))
        thought: torch.Tensor = self.norms[2](queries + self.think(queries))
        return thought


class TinyMaskFormer(nn.Module):
    """Images (B, 3, 128, 128) 0..255 to class logits (B, 26, C + 1) and mask logits (B, 26, 64, 64)."""

    cells: torch.Tensor
    pixels: torch.Tensor
    code: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(CHANNELS)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS[1:])
        self.heat = nn.Sequential(convolution(WIDTH, 32), nn.Conv2d(32, 1, 1))
        self.smooth = convolution(WIDTH, WIDTH)
        self.pixel = nn.Sequential(convolution(WIDTH + CHANNELS[0], 32), nn.Conv2d(32, EMBEDDING, 3, 1, 1))
        self.free = nn.Parameter(torch.randn(2, FREE, WIDTH) * 0.1)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.classify = nn.Linear(WIDTH, classes + 1)
        self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, EMBEDDING + 6))
        self.register_buffer("cells", torch.stack(cell_centres(STRIDE)), persistent=False)
        self.register_buffer("pixels", torch.stack(cell_centres(2)), persistent=False)
        self.register_buffer("code", place_code(*cell_centres(2 * STRIDE)), persistent=False)
        last = self.heat[1]
        assert isinstance(last, nn.Conv2d)
        last.bias = nn.Parameter(torch.tensor([-3.0]))

    def answers(self, images: torch.Tensor) -> Answers:
        """Return what the queries say after each layer."""
        half, quarter, eighth, sixteenth = self.backbone(normalised(images))
        p8 = self.lateral[1](eighth) + twice(self.lateral[2](sixteenth))
        p4 = self.smooth(self.lateral[0](quarter) + twice(p8))
        heat = self.heat(p4)[:, 0]
        pixel = self.pixel(torch.cat([twice(p4), half], 1)).flatten(2)
        where, queries = self._placed(heat, p4)
        places = torch.cat([place_code(where[..., 0], where[..., 1]), self.free[:1].expand(images.shape[0], -1, -1)], 1)
        queries = torch.cat([queries, self.free[1:].expand(images.shape[0], -1, -1)], 1)
        classes, masks, tokens = [], [], p8.flatten(2).transpose(1, 2)
        for layer in self.layers:
            queries = layer(queries, places, tokens, self.code)
            classes.append(self.classify(queries))
            masks.append(self._masks(self.embed(queries), pixel, where))
        return Answers(classes, masks, heat)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answers = self.answers(images)
        return answers.classes[-1], answers.masks[-1]

    def _placed(self, heat: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places (B, PLACED, 2) of the heat's highest peaks, in pixels, and the features there."""
        chance = torch.sigmoid(heat)
        peaks = chance * (functional.max_pool2d(chance[:, None], 3, 1, 1)[:, 0] == chance).float()
        index = peaks.flatten(1).topk(PLACED, 1).indices
        where = self.cells.t()[index]
        picked = torch.gather(features.flatten(2), 2, index[:, None].expand(-1, WIDTH, -1))
        return where, picked.transpose(1, 2)

    def _masks(self, said: torch.Tensor, pixel: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Return embeddings times pixels, less a distance from the query's place that it chooses itself."""
        logits = said[..., :EMBEDDING] @ pixel + said[..., -1:]
        shape, centre = said[:, :PLACED, EMBEDDING:-1], where
        dx, dy = ((self.pixels[axis] - centre[..., axis : axis + 1]) / REACH for axis in (0, 1))
        dx, dy = dx - shape[..., 3:4], dy - shape[..., 4:5]
        steep = functional.softplus(shape[..., :2] + 1)
        far = steep[..., :1] * dx * dx + steep[..., 1:] * dy * dy + shape[..., 2:3] * dx * dy
        placed = torch.cat([logits[:, :PLACED] - far, logits[:, PLACED:]], 1)
        return placed.unflatten(2, (INPUT // 2, INPUT // 2))
