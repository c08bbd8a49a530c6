"""The encoder and the prompt decoder, in the layout of segment-anything's `SamOnnxModel`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from unet import DEVIATION, MEAN, double_convolution

SIDE, STRIDE = 384, 4
"""Pixels of the exported encoder's input, and of a cell of its embedding."""
CELLS = SIDE // STRIDE
CHANNELS = (24, 40, 64, 96)
EMBEDDED = 24
NOT_OBJECT, OBJECT, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
"""Labels of points; any other is padding."""
NEAR, FAR = 4.0, 32.0
"""Pixels over which the two maps of a click fade."""
DILATIONS = (1, 2, 4, 8, 12, 1)
PROMPT_MAPS = 7


class Encoder(nn.Module):
    """Grey images (N, 1, H, W) 0..255, H and W multiples of 16, to embeddings (N, EMBEDDED, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList([double_convolution(a, b) for a, b in pairwise((CHANNELS[0], *CHANNELS))])
        self.up = nn.ModuleList([double_convolution(a + b, a) for a, b in pairwise(CHANNELS[1:])])
        self.head = nn.Conv2d(CHANNELS[1], EMBEDDED, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise, and encode down to cells of 16 pixels and up again to cells of 4."""
        features = functional.relu(self.stem((image.float() - MEAN) * (1 / DEVIATION)))
        skips: list[torch.Tensor] = []
        for depth, block in enumerate(self.down):
            features = block(functional.max_pool2d(features, 2) if depth else features)
            skips.append(features)
        for skip, block in zip(reversed(skips[1:-1]), reversed(self.up), strict=True):
            features = block(torch.cat([skip, functional.interpolate(features, scale_factor=2.0)], 1))
        embedding: torch.Tensor = self.head(features)
        return embedding


class Decoder(nn.Module):
    """A prompt becomes maps beside the embedding, as in RITM (arXiv:2102.06583); dilated convolutions read them."""

    def __init__(self) -> None:
        super().__init__()
        widths = (EMBEDDED + PROMPT_MAPS + 1, *[EMBEDDED] * len(DILATIONS))
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=dilation, dilation=dilation)
            for (a, b), dilation in zip(pairwise(widths), DILATIONS, strict=True)
        )
        self.mask = nn.Conv2d(EMBEDDED, 1, 1)
        self.iou = nn.Sequential(nn.Linear(2 * EMBEDDED, EMBEDDED), nn.ReLU(), nn.Linear(EMBEDDED, 1), nn.Sigmoid())

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predicted IoUs (P, 1) and logits (P, 1, h, w), for P prompts of N points each.

        Embeddings are (P, EMBEDDED, h, w), points (P, N, 2) as x y in pixels with labels (P, N), and masks the logits
        (P, 1, h, w) of an earlier answer, which count where `has_mask_input` (P,) is 1.
        """
        height, width = image_embeddings.shape[2:]
        rows = (torch.arange(height, dtype=torch.float32) + 0.5)[:, None] * STRIDE
        columns = (torch.arange(width, dtype=torch.float32) + 0.5)[None] * STRIDE
        x, y = point_coords[..., 0, None, None], point_coords[..., 1, None, None]
        square = (columns - x) ** 2 + (rows - y) ** 2
        clicked = [
            (fading * (point_labels == label)[..., None, None]).amax(1, keepdim=True)
            for fading in (torch.exp(square * (-0.5 / NEAR**2)), torch.exp(square.sqrt() * (-1 / FAR)))
            for label in (OBJECT, NOT_OBJECT)
        ]
        first, last = (
            (point_coords * (point_labels == label)[..., None]).sum(1)[..., None, None]
            for label in (TOP_LEFT, BOTTOM_RIGHT)
        )
        across = (columns >= first[:, 0]) & (columns <= last[:, 0])
        boxed = (across & (rows >= first[:, 1]) & (rows <= last[:, 1])).float()[:, None]
        has_mask = has_mask_input[:, None, None, None].expand_as(boxed)
        maps = torch.cat([*clicked, boxed, torch.sigmoid(mask_input) * has_mask, has_mask], 1)
        # How much each place resembles the places of the prompt.
        chosen = clicked[0] + boxed
        own = (image_embeddings * chosen).sum((2, 3), keepdim=True) / (chosen.sum((2, 3), keepdim=True) + 1e-3)
        alike = (image_embeddings * own).mean(1, keepdim=True)
        features = torch.cat([image_embeddings, maps, alike], 1)
        for depth, layer in enumerate(self.layers):
            found = functional.relu(layer(features))
            features = features + found if depth else found
        logits: torch.Tensor = self.mask(features)
        weight = torch.sigmoid(logits)
        inside = (features * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)
        return self.iou(torch.cat([inside, features.mean((2, 3))], 1)), logits
