"""Boxes, and features cut out by them: what a two-stage network needs."""

from __future__ import annotations

import torch
from torch.nn import functional


def box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the IoU of boxes (..., N, 4) with others (..., M, 4), shaped (..., N, M)."""
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area, other_area = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others))
    return inter / (area[..., :, None] + other_area[..., None, :] - inter + 1e-6)


def region_grid(boxes: torch.Tensor, size: int, cells: int) -> torch.Tensor:
    """Return where cells x cells bins of boxes (B, K, 4), in pixels of a size x size image, have their centres.

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


def region_align(features: torch.Tensor, boxes: torch.Tensor, size: int, cells: int) -> torch.Tensor:
    """Return features (B, C, h, w) sampled in boxes (B, K, 4): one sample a bin, (B * K, C, cells, cells)."""
    grid = region_grid(boxes, size, cells)
    sampled = functional.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    batch, channels, count = int(features.shape[0]), int(features.shape[1]), int(boxes.shape[1])
    apart = sampled.reshape(batch, channels, count, cells, cells).permute(0, 2, 1, 3, 4)
    return apart.reshape(batch * count, channels, cells, cells)
