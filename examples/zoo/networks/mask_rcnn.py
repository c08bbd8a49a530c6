"""A two-stage network with the output layout of Mask R-CNN (He et al. 2017): regions first, then each by itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from examples.zoo.networks.blocks import Backbone, Residual, convolution, normalised, twice
from examples.zoo.networks.regions import box_iou, region_align

INPUT, STRIDE = 128, 4
REGIONS = 40  # the boxes of an answer
BOX_CELLS, MASK_CELLS, MASK_SIZE = 8, 14, 28
CHANNELS = (16, 24, 40, 48)
WIDTH, FINE = 40, 32
SAME_OBJECT = 0.5


class Views(NamedTuple):
    """What the first stage gives: logits of a centre `heat` (B, h, w), `sides` (B, 4, h, w) in pixels, features."""

    heat: torch.Tensor
    sides: torch.Tensor
    features: torch.Tensor


class TinyMaskRcnn(nn.Module):
    """One image (1, 3, 128, 128) 0..255 to boxes (K, 4), labels (K,) from 1, scores (K,), masks (K, 1, 28, 28).

    Boxes are x1 y1 x2 y2 in pixels of the input, masks are probabilities. A box on the same object as a better one
    has the score 0.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(CHANNELS)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in CHANNELS[1:])
        self.propose = nn.Sequential(convolution(WIDTH, WIDTH), convolution(WIDTH, WIDTH), nn.Conv2d(WIDTH, 5, 1))
        self.fine = nn.Sequential(convolution(WIDTH + CHANNELS[0], FINE), Residual(FINE, FINE))
        self.box = nn.Sequential(
            convolution(FINE, 40),
            convolution(40, 48, 2),
            nn.Flatten(),
            nn.Linear(48 * 16, 80),
            nn.ReLU(inplace=True),
            nn.Linear(80, 1 + classes + 4),
        )
        self.mask = nn.Sequential(
            convolution(FINE, 32),
            convolution(32, 32),
            nn.ConvTranspose2d(32, 20, 2, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(20, 1, 1),
        )
        last = self.propose[2]
        assert isinstance(last, nn.Conv2d)
        last.bias = nn.Parameter(torch.tensor([-3.0, 1.0, 1.0, 1.0, 1.0]))

    def views(self, images: torch.Tensor) -> Views:
        """Run the first stage."""
        half, quarter, eighth, sixteenth = self.backbone(normalised(images))
        p8 = self.lateral[1](eighth) + twice(self.lateral[2](sixteenth))
        p4 = self.lateral[0](quarter) + twice(p8)
        said = self.propose(p4)
        sides = functional.softplus(said[:, 1:]) * (2.0 * STRIDE)
        return Views(said[:, 0], sides, self.fine(torch.cat([twice(p4), half], 1)))

    @staticmethod
    def proposals(views: Views, count: int) -> torch.Tensor:
        """Return the boxes (B, count, 4) of the highest peaks of the heat."""
        heat = torch.sigmoid(views.heat)
        is_peak = (functional.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat).float()
        # Where there are too few peaks the next best follow: among zeros, every runtime would choose others.
        peaks = heat * (0.01 + 0.99 * is_peak)
        index = peaks.flatten(1).topk(count, 1).indices
        wide = INPUT // STRIDE
        x, y = (index % wide).float(), torch.div(index, wide, rounding_mode="floor").float()
        x, y = (x + 0.5) * STRIDE, (y + 0.5) * STRIDE
        sides = torch.gather(views.sides.flatten(2), 2, index[:, None].expand(-1, 4, -1))
        corners = [x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]]
        return torch.stack(corners, -1).clamp(0, float(INPUT))

    def refined(self, features: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits (B, K, 1 + C), the first is nothing, and better boxes (B, K, 4)."""
        said = self.box(region_align(features, boxes, INPUT, BOX_CELLS))
        said = said.reshape(int(boxes.shape[0]), int(boxes.shape[1]), -1)
        size = boxes[..., 2:] - boxes[..., :2]
        moved = boxes + 0.4 * torch.tanh(said[..., -4:]) * torch.cat([size, size], -1)
        return said[..., :-4], moved.clamp(0, float(INPUT))

    def masks(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Return mask logits (B * K, 1, 28, 28) over boxes (B, K, 4)."""
        logits: torch.Tensor = self.mask(region_align(features, boxes, INPUT, MASK_CELLS))
        return logits

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        views = self.views(image)
        logits, boxes = self.refined(views.features, self.proposals(views, REGIONS))
        best, label = torch.softmax(logits[0], 1)[:, 1:].max(1)
        scores, order = best.topk(REGIONS)
        boxes, labels = boxes[0][order], label[order] + 1
        overlap = torch.triu(box_iou(boxes, boxes), 1).amax(0)  # with any better box
        scores = scores * (overlap < SAME_OBJECT).float()
        return boxes, labels, scores, torch.sigmoid(self.masks(views.features, boxes[None]))
