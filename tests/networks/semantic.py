"""Small networks of our own with a logit for every pixel and class, at the resolutions that such networks answer in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Semantic(nn.Module):
    """Random convolutions: uint8 (B, 3, H, W) in, float32 (B, channels, H / stride, W / stride) out.

    With a stride of 1 it comes back up and sees its first features again, as a U-Net does. `end` is applied to the
    logits in the file.
    """

    def __init__(
        self, channels: int, stride: int, seed: int, end: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        super().__init__()
        self.end = end
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=4, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=4) if stride == 1 else None
        self.last = nn.Conv2d(16, channels, 1, bias=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.first(image.float() / 128 - 1).relu()
        coarse = self.down(fine).relu()
        features = coarse if self.up is None else torch.cat([fine, self.up(coarse)], 1)
        logits: torch.Tensor = 4 * self.last(features)
        return logits if self.end is None else self.end(logits)

    def write(self, path: Path) -> None:
        """Write the ONNX file, with a free batch and a free size."""
        torch.onnx.export(
            self,
            (torch.zeros(2, 3, 64, 96, dtype=torch.uint8),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 2: f"{name} rows", 3: f"{name} columns"} for name in ("image", "logits")},
            opset_version=17,
            dynamo=False,
        )
