"""Runs in Debian's Python: torchvision's own pasting, key points and networks, on numpy arrays."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torchvision.models.detection import roi_heads
from torchvision_networks import OUTPUTS, RawHeads, network

torch.set_num_threads(1)


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probabilities float32 (N, height, width) of masks (N, M, M)."""
    return _pasted(masks, boxes, height, width).numpy()


def paste_rles(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[bytes]:
    """What people do with a Mask R-CNN's answer: paste, compare, encode mask by mask."""
    return [encoded(mask) for mask in _pasted(masks, boxes, height, width) > 0.5]


def _pasted(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> torch.Tensor:
    return roi_heads.paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (height, width))[
        :, 0
    ]


def encoded(mask: torch.Tensor) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask.numpy().view(np.uint8)))["counts"]
    return counts


def keypoints(heatmaps: np.ndarray, boxes: np.ndarray) -> Any:
    """Points float32 (N, K, 3) as x y 1 and their logits float32 (N, K)."""
    points, scores = roi_heads.heatmaps_to_keypoints(torch.from_numpy(heatmaps), torch.from_numpy(boxes))
    return points.numpy(), scores.numpy()


def whole(kind: str, seed: int, image: np.ndarray, resizes: bool) -> Any:
    """What a small torchvision network answers, and what it is made of.

    `image` is uint8 (H, W, 3); unless it `resizes`, the network looks at it as it is. The answer is torchvision's own,
    masks as RLE; the raw heads are those of the image as resized, whose height and width come with them, then those of
    the padded input.
    """
    given = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    model = network(kind, seed)
    if not resizes:
        model.transform.resize = lambda image, target: (image, target)
    with torch.no_grad():
        (answer,) = model([given])
        resized, _ = model.transform([given])
        model.transform.forward = lambda images, targets: (resized, None)
        heads = RawHeads(model, OUTPUTS[kind])(torch.zeros(1, 3, 8, 8))
    shown = {name: value.numpy() for name, value in answer.items() if name != "masks"}
    if kind == "mask":
        shown["masks"] = [encoded(mask) for mask in answer["masks"][:, 0] > 0.5]
    raw = {name: value.numpy() for name, value in zip(OUTPUTS[kind], heads, strict=True)}
    return {"answer": shown, "raw": raw, "sizes": [*resized.image_sizes[0], *resized.tensors.shape[-2:]]}


def encode_rles(bitmaps: np.ndarray) -> list[bytes]:
    """RLE of bitmaps uint8 (N, H, W), with the copy to Fortran order that pycocotools needs."""
    return [coco.encode(np.asfortranarray(bitmap))["counts"] for bitmap in bitmaps]


def versions() -> dict[str, str]:
    """The versions of what runs here."""
    return {name: version(name) for name in ("torch", "torchvision", "numpy", "pycocotools")}
