"""A promptable network that needs no training: a click selects what has the colour under it."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

SIDE = 128
CELLS = 32
TOLERANCES = (0.2, 0.1, 0.2, 0.4)
"""Largest distance of colours, of each of the four masks."""
IOU = (0.9, 0.5, 0.8, 0.7)
DISC, SQUARE = (50, 50), (150, 60)
"""Places in the objects of `scene`."""


class Encoder(nn.Module):
    """FP32 (1, 3, 128, 128) of 0 to 1 in, FP32 (1, 8, 32, 32) out: mean colours, and zeros."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        return nn.functional.pad(nn.functional.avg_pool2d(image, SIDE // CELLS), (0, 0, 0, 0, 0, 5))


class Decoder(nn.Module):
    """The inputs and outputs of segment-anything's `SamOnnxModel`."""

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return masks of the image's size, their predicted IoU, and their logits."""
        colours, points, labels = image_embeddings[:, :3], point_coords[0], point_labels[0]
        grid = (points / SIDE * 2 - 1)[None, None]
        own = nn.functional.grid_sample(colours, grid, mode="nearest", align_corners=False)[0, :, 0]
        distance = (colours[0, :, None] - own[:, :, None, None]).abs().sum(0)
        far = torch.full_like(distance, 9.0)
        near = torch.where((labels == 1)[:, None, None], distance, far).amin(0)
        other = torch.where((labels == 0)[:, None, None], distance, far).amin(0)
        places = (torch.arange(CELLS) + 0.5) * (SIDE / CELLS)
        first = torch.where((labels == 2)[:, None], points, torch.zeros_like(points)).sum(0)
        last = torch.where((labels == 3)[:, None], points, torch.zeros_like(points)).sum(0)
        last = last + (labels != 3).all() * SIDE
        rows, columns = ((places >= first[axis]) & (places <= last[axis]) for axis in (1, 0))
        inside = rows[:, None] & columns[None]
        # Without a point a box is all that is in it.
        near = near * (labels == 1).any()
        tolerance = torch.tensor(TOLERANCES)[:, None, None]
        logits = 8 * torch.minimum(tolerance - near, other - tolerance)
        logits = torch.where(inside, logits, -8.0)[None] + has_mask_input * mask_input
        size = orig_im_size.to(torch.int64)
        masks = nn.functional.interpolate(logits, size=(size[0], size[1]), mode="bilinear", align_corners=False)
        return masks, torch.tensor([IOU]), logits


def write(folder: Path) -> tuple[Path, Path]:
    """Write encoder.onnx and decoder.onnx."""
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    example = {
        "image_embeddings": torch.zeros(1, 8, CELLS, CELLS),
        "point_coords": torch.ones(1, 3, 2),
        "point_labels": torch.ones(1, 3),
        "mask_input": torch.zeros(1, 1, CELLS, CELLS),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([100.0, 80.0]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, which is the former one
        torch.onnx.export(
            Encoder(),
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(encoder),
            input_names=["image"],
            output_names=["image_embeddings"],
            opset_version=17,
            dynamo=False,
        )
        torch.onnx.export(
            Decoder(),
            tuple(example.values()),
            str(decoder),
            input_names=list(example),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
            opset_version=17,
            dynamo=False,
        )
    return encoder, decoder


def scene() -> bytes:
    """Return a PNG of 200 x 120 pixels with a red disc and a green square."""
    image, file = Image.new("RGB", (200, 120), (10, 20, 30)), io.BytesIO()
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 80, 80), fill=(200, 30, 30))
    draw.rectangle((110, 40, 180, 100), fill=(30, 200, 60))
    image.save(file, "PNG")
    return file.getvalue()


def shows(mask: NDArray[Any], *places: tuple[int, int]) -> list[bool]:
    """Return whether a mask has each of the places."""
    return [bool(mask[y, x]) for x, y in places]


def written_by_init(folder: Path) -> dict[str, Any]:
    """Write the networks, and return the resource `sam` that `segserve init` writes to `sam/model.yaml` for them."""
    encoder, decoder = write(folder)
    (folder / "photos").mkdir()
    (folder / "photos/both.png").write_bytes(scene())
    init = [sys.executable, "-m", "segserve_platform.cli", "init", "photos", encoder, "--decoder", decoder]
    subprocess.run([*init, "--name", "sam", "-o", "sam"], cwd=folder, check=True, capture_output=True)
    resource: dict[str, Any] = yaml.safe_load((folder / "sam/model.yaml").read_text())
    return resource
