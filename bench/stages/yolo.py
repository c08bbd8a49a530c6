"""YOLO-seg heads to RLE, compared with the usual implementation in torch and pycocotools."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from pycocotools import mask as coco
from torch.nn import functional

from bench.stages.case import Case, Peer
from bench.stages.paste import compared, random_boxes
from segserve_builder.kernels.masks import mask_rles
from segserve_builder.sampling import axes
from segserve_builder.values import ResizeTransform

SIZE = 640
CELLS = 160
CHANNELS = 32
Heads = tuple[np.ndarray, np.ndarray, np.ndarray]


def heads(n: int, seed: int, *, coarse: int) -> Heads:
    """Return prototypes that vary over `coarse` cells, coefficients and boxes."""
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(rng.normal(size=(1, CHANNELS, CELLS // coarse, CELLS // coarse)).astype(np.float32))
    prototypes = functional.interpolate(low, (CELLS, CELLS), mode="bicubic")[0].numpy()
    return prototypes, rng.normal(size=(n, CHANNELS)).astype(np.float32), random_boxes(n, SIZE, SIZE, seed)


def ours(prototypes: np.ndarray, coefficients: np.ndarray, boxes: np.ndarray) -> tuple[bytes, ...]:
    return mask_rles(prototypes, coefficients, boxes, *axes(ResizeTransform.of(SIZE, SIZE), CELLS, CELLS))


def by_torch(prototypes: np.ndarray, coefficients: np.ndarray, boxes: np.ndarray) -> list[bytes]:
    """Upsample the logits of all masks to the input, crop them to the boxes, threshold and encode them one by one."""
    low = (torch.from_numpy(coefficients) @ torch.from_numpy(prototypes).reshape(CHANNELS, -1)).reshape(
        -1, CELLS, CELLS
    )
    masks = functional.interpolate(low[None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
    x0, y0, x1, y1 = torch.from_numpy(boxes)[:, :, None, None].unbind(1)
    at = torch.arange(SIZE, dtype=torch.float32)
    x, y = at[None, None, :], at[None, :, None]
    cropped = masks * ((x >= x0) * (x < x1) * (y >= y0) * (y < y1))
    bitmaps = cropped.gt(0).numpy().view(np.uint8)
    return [coco.encode(np.asfortranarray(bitmap))["counts"] for bitmap in bitmaps]


def recipe(heads: Heads, goal: float | None) -> Peer:
    def agrees() -> str:
        return compared(ours(*heads), by_torch(*heads), SIZE, SIZE, most=1e-6)

    name = f"{version('torch')} + pycocotools {version('pycocotools')}"
    return Peer("the recipe in torch", name, partial(by_torch, *heads), agrees, goal)


def cases() -> Iterator[Case]:
    smooth, noise = heads(100, 0, coarse=8), heads(100, 0, coarse=1)
    name = "100 YOLO-seg heads 160x160 to RLE, 640x640"
    yield Case(name, partial(ours, *smooth), (recipe(smooth, 40),))
    yield Case(f"{name}, noise", partial(ours, *noise), (recipe(noise, None),), worst=True)
