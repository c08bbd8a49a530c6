"""The two-stage network: boxes from a heat map of centres, then each box by itself; Mask R-CNN's output layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from unet import DEVIATION, MEAN
from yolo import Residual, convolution, double

STRIDE = 8
REGIONS = 64  # the boxes of an answer
CELLS, MASK_SIZE = 14, 28
WIDTH, FINE = 40, 32
SIDE_UNIT = 12.0
SAME_COIN = 0.5


class Views(NamedTuple):
    """What the first stage gives: centres' logits `heat` (B, h, w), `sides` (B, 4, h, w) in pixels, features at 1/4."""

    heat: torch.Tensor
    sides: torch.Tensor
    features: torch.Tensor


def box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the IoU of boxes (..., N, 4) with others (..., M, 4), shaped (..., N, M)."""
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area, other_area = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others))
    return inter / (area[..., :, None] + other_area[..., None, :] - inter + 1e-6)


def region_grid(boxes: torch.Tensor, size: int, cells: int) -> torch.Tensor:
    """Return the centres of cells x cells bins of boxes (B, K, 4), in pixels of a size x size image.

    They are shaped (B, K * cells, cells, 2) and in -1..1 over the image, as `grid_sample` takes them.
    """
    at = (torch.arange(cells, dtype=torch.float32) + 0.5) / cells
    x = boxes[..., 0:1] + (boxes[..., 2:3] - boxes[..., 0:1]) * at
    y = boxes[..., 1:2] + (boxes[..., 3:4] - boxes[..., 1:2]) * at
    # Numbers, not shapes: they become constants of the exported graph.
    batch, count = int(boxes.shape[0]), int(boxes.shape[1])
    shape = (batch, count, cells, cells)
    grid = torch.stack([x[:, :, None, :].expand(shape), y[:, :, :, None].expand(shape)], -1)
    return (grid * (2.0 / size) - 1).reshape(batch, count * cells, cells, 2)


def region_align(features: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Return features (B, C, h, w) sampled in boxes (B, K, 4), one sample a bin: (B * K, C, CELLS, CELLS)."""
    grid = region_grid(boxes, size, CELLS)
    sampled = functional.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    batch, channels, count = int(features.shape[0]), int(features.shape[1]), int(boxes.shape[1])
    apart = sampled.reshape(batch, channels, count, CELLS, CELLS).permute(0, 2, 1, 3, 4)
    return apart.reshape(batch * count, channels, CELLS, CELLS)


class TinyMaskRcnn(nn.Module):
    """One grey image (1, 1, size, size) 0..255 to boxes (K, 4), labels (K,), scores (K,) and masks (K, 1, 28, 28).

    Boxes are x1 y1 x2 y2 in pixels of the input, labels are all 1, masks are probabilities over their boxes. A box on
    the same coin as a better one has the score 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(1, 12, 2), convolution(12, 24, 2), convolution(24, 24))
        self.stage8 = nn.Sequential(convolution(24, 40, 2), Residual(40))
        self.stage16 = nn.Sequential(convolution(40, 56, 2), Residual(56))
        self.stage32 = nn.Sequential(convolution(56, 64, 2), Residual(64))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in (40, 56, 64))
        last = nn.Conv2d(WIDTH, 5, 1)
        self.propose = nn.Sequential(convolution(WIDTH, WIDTH), convolution(WIDTH, WIDTH), last)
        self.fine = nn.Sequential(convolution(WIDTH + 24, FINE), convolution(FINE, FINE))
        said = nn.Linear(64, 5)
        squeeze = (convolution(FINE, 40, 2), convolution(40, 40, 2), nn.Flatten(), nn.Linear(640, 64))
        self.box = nn.Sequential(*squeeze, nn.ReLU(inplace=True), said)
        enlarge = (nn.ConvTranspose2d(40, 24, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(24, 1, 1))
        self.mask = nn.Sequential(convolution(FINE, 40), convolution(40, 40), *enlarge)
        # A first guess of few coins, and of boxes that are good already, keeps the first steps from swinging.
        last.bias = nn.Parameter(torch.tensor([-3.0, 1.0, 1.0, 1.0, 1.0]))
        said.weight = nn.Parameter(said.weight.detach() * 0.1)
        said.bias = nn.Parameter(torch.zeros(5))

    def views(self, images: torch.Tensor) -> Views:
        """Run the first stage."""
        quarter = self.stem((images.float() - MEAN) * (1 / DEVIATION))
        c8 = self.stage8(quarter)
        c16 = self.stage16(c8)
        p16 = self.lateral[1](c16) + double(self.lateral[2](self.stage32(c16)))
        p8 = self.lateral[0](c8) + double(p16)
        said = self.propose(p8)
        features = self.fine(torch.cat([double(p8), quarter], 1))
        return Views(said[:, 0], functional.softplus(said[:, 1:]) * SIDE_UNIT, features)

    @staticmethod
    def proposals(views: Views, size: int, count: int) -> torch.Tensor:
        """Return the boxes (B, count, 4) of the highest peaks of the heat."""
        heat = torch.sigmoid(views.heat)
        is_peak = (functional.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat).float()
        # Where there are too few peaks the next best follow: among zeros, every runtime would choose others.
        peaks = heat * (0.01 + 0.99 * is_peak)
        index = peaks.flatten(1).topk(count, 1).indices
        wide = size // STRIDE
        x, y = (index % wide).float(), torch.div(index, wide, rounding_mode="floor").float()
        x, y = (x + 0.5) * STRIDE, (y + 0.5) * STRIDE
        sides = torch.gather(views.sides.flatten(2), 2, index[:, None].expand(-1, 4, -1))
        corners = [x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]]
        return torch.stack(corners, -1).clamp(0, float(size))

    def refined(self, features: torch.Tensor, boxes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, K) of a coin being there, and better boxes (B, K, 4)."""
        said = self.box(region_align(features, boxes, size))
        said = said.reshape(int(boxes.shape[0]), int(boxes.shape[1]), 5)
        sides = boxes[..., 2:] - boxes[..., :2]
        moved = boxes + 0.3 * torch.tanh(said[..., 1:]) * torch.cat([sides, sides], -1)
        return said[..., 0], moved.clamp(0, float(size))

    def masks(self, features: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
        """Return mask logits (B * K, 1, 28, 28) over boxes (B, K, 4)."""
        logits: torch.Tensor = self.mask(region_align(features, boxes, size))
        return logits

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Find, refine, drop what was found twice, and draw the masks."""
        size = int(image.shape[2])
        views = self.views(image)
        logits, boxes = self.refined(views.features, self.proposals(views, size, REGIONS), size)
        scores, order = torch.sigmoid(logits[0]).topk(REGIONS)
        boxes = boxes[0][order]
        overlap = torch.triu(box_iou(boxes, boxes), 1).amax(0)  # with any better box
        scores = scores * (overlap < SAME_COIN).float()
        masks = torch.sigmoid(self.masks(views.features, boxes[None], size))
        return boxes, torch.ones_like(order), scores, masks
