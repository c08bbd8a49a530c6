"""Small networks with the outputs of YOLO exports, and plain torch for what their projects make of these."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

SIDE = 128
CLASSES = 5
COEFFICIENTS = 6

Layout = Literal["v8", "v5", "end to end"]


class Network(nn.Module):
    """Random heads over grids of 8 and 16 pixels: uint8 (B, 3, SIDE, SIDE) in, the layout's one or two outputs out."""

    def __init__(self, layout: Layout, masks: bool, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layout, self.masks = layout, masks
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.down = nn.Conv2d(16, 16, 2, stride=2)
        self.head = nn.Conv2d(16, 5 + CLASSES + COEFFICIENTS, 1)
        self.prototypes = nn.ConvTranspose2d(16, COEFFICIENTS, 2, stride=2)
        for name, weight in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(weight)
                weight.data *= 2 if name.startswith("head") else 1
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine = (self.stem(image.float() / 128 - 1)).relu()
        scales = [self._scale(fine, 8), self._scale(self.down(fine).relu(), 16)]
        rows = torch.cat(scales, 1)
        if self.layout == "v8":
            detections = torch.cat([rows[..., :4], rows[..., 5:]], 2).transpose(1, 2)
        elif self.layout == "v5":
            detections = rows
        else:
            scores, label = rows[..., 5 : 5 + CLASSES].max(2, keepdim=True)
            half = rows[..., 2:4] / 2
            corners = [rows[..., :2] - half, rows[..., :2] + half]
            all_rows = torch.cat([*corners, scores, label.float(), rows[..., 5 + CLASSES :]], 2)
            best = scores[..., 0].topk(100)[1]
            detections = all_rows.gather(1, best[..., None].expand(-1, -1, all_rows.shape[2]))
        return (detections, self.prototypes(fine)) if self.masks else (detections,)

    def _scale(self, features: torch.Tensor, stride: int) -> torch.Tensor:
        raw = self.head(features)[:, : 5 + CLASSES + COEFFICIENTS * self.masks]
        side = SIDE // stride
        raw = raw.flatten(2).transpose(1, 2)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        centres = (torch.stack([x, y], 2).reshape(-1, 2) + raw[..., :2].sigmoid()) * stride
        sizes = (raw[..., 2:4].sigmoid() * 2 + 0.5) * 2 * stride
        return torch.cat([centres, sizes, raw[..., 4 : 5 + CLASSES].sigmoid(), raw[..., 5 + CLASSES :]], 2)

    def write(self, path: Path) -> None:
        """Write the ONNX file, with a free batch."""
        outputs = ["output0", "output1"][: 1 + self.masks]
        torch.onnx.export(
            self,
            (torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8),),
            str(path),
            input_names=["images"],
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in ["images", *outputs]},
            opset_version=17,
            dynamo=False,
        )


def nms(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, threshold: float) -> list[int]:
    keep: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        near = [j for j in keep if classes[j] == classes[i]]
        size = (torch.minimum(boxes[near, 2:], boxes[i, 2:]) - torch.maximum(boxes[near, :2], boxes[i, :2])).clamp(0)
        shared = size.prod(1)
        if not (shared / (area[near] + area[i] - shared) > threshold).any():
            keep.append(i)
    return keep


def chosen(rows: torch.Tensor, layout: Layout, classes: int) -> tuple[torch.Tensor, ...]:
    """Return boxes in the input's pixels, scores, classes and coefficients that a project keeps of an image's rows.

    `rows` are (N, numbers), also those of v8; thresholds are the defaults of the projects' prediction.
    """
    if layout == "end to end":
        kept = rows[rows[:, 4] > 0.25]
        return kept[:, :4], kept[:, 4], kept[:, 5], kept[:, 6:]
    first = 5 if layout == "v5" else 4
    scores = rows[:, first : first + classes]
    if layout == "v5":
        scores = scores * rows[:, 4:5]
    best, label = scores.max(1)
    candidates = best > 0.25
    best, label, rows = best[candidates], label[candidates], rows[candidates]
    half = rows[:, 2:4] / 2
    boxes = torch.cat([rows[:, :2] - half, rows[:, :2] + half], 1)
    keep = nms(boxes, best, label, 0.45 if layout == "v5" else 0.7)
    return boxes[keep], best[keep], label[keep], rows[keep, first + classes :]


def masks(coefficients: torch.Tensor, prototypes: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return bool (N, SIDE, SIDE): upsampled, cut to the boxes, above a probability of one half."""
    logits = torch.einsum("nk,khw->nhw", coefficients, prototypes)[None]
    logits = nn.functional.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    pixels = torch.arange(SIDE)
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    inside = (pixels >= x1) & (pixels < x2) & (pixels[:, None] >= y1) & (pixels[:, None] < y2)
    return (logits > 0) & inside
