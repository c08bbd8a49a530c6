"""Masks of a Mask R-CNN to RLE, compared with torchvision, OpenCV and detectron2's method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

from bench.stages.case import Case, Peer
from segserve_builder.kernels.paste import paste_rles

ROOT = Path(__file__).parents[2]

from oracles.debian import Debian  # noqa: E402

SIDE = 28
COCO = f"+ pycocotools {version('pycocotools')}"
Head = tuple[np.ndarray, np.ndarray, int, int]


def blobs(n: int, seed: int) -> np.ndarray:
    """Return mask probabilities: a smooth superellipse with little noise in each box."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
    power = rng.uniform(1.2, 4, (n, 1, 1))
    wave = 0.12 * np.sin(3 * np.arctan2(y, x) + rng.uniform(0, 6, (n, 1, 1)))
    away = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power) + wave
    logits = 12 * (0.9 - away) + rng.normal(0, 0.3, (n, SIDE, SIDE))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def random_boxes(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return boxes within the image; the square roots of their areas are log-uniform from 12 to 500 pixels."""
    rng = np.random.default_rng(seed)
    side, aspect = np.exp(rng.uniform(np.log(12), np.log(500), n)), np.exp(rng.uniform(-0.6, 0.6, n))
    size = np.minimum(np.stack([side * aspect, side / aspect], axis=1), [width, height])
    corner = rng.random((n, 2)) * ([width, height] - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def by_opencv(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[bytes]:
    """Resize within the box, threshold, copy into a bitmap and encode: the fastest way with libraries."""
    counts = []
    grown = (masks.shape[1] + 2) / masks.shape[1]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 * grown, (y1 - y0) / 2 * grown
        left, top, right, bottom = int(cx - w), int(cy - h), int(cx + w), int(cy + h)
        roi = cv2.resize(
            cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), (right - left + 1, bottom - top + 1)
        )
        a, b, c, d = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
        bitmap = np.zeros((height, width), np.uint8, order="F")
        bitmap[b:d, a:c] = roi[b - top : d - top, a - left : c - left] > 0.5
        counts.append(coco.encode(bitmap)["counts"])
    return counts


def by_detectron2(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[bytes]:
    """Do what detectron2's paste_masks_in_image does on a CPU, mask by mask within its box, and encode."""
    import torch
    from torch.nn import functional

    counts = []
    for mask, box in zip(torch.from_numpy(masks), torch.from_numpy(boxes), strict=True):
        x0, y0, x1, y1 = box
        left, top = (int(v.floor().clamp(min=1)) - 1 for v in (x0, y0))
        right, bottom = min(int(x1.ceil()) + 1, width), min(int(y1.ceil()) + 1, height)
        x = (torch.arange(left, right, dtype=torch.float32) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, dtype=torch.float32) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2)
        roi = functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        bitmap = torch.zeros(height, width, dtype=torch.bool)
        bitmap[top:bottom, left:right] = roi >= 0.5
        counts.append(coco.encode(np.asfortranarray(bitmap.numpy().view(np.uint8)))["counts"])
    return counts


def pixels(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    return np.stack([coco.decode({"size": [height, width], "counts": c}) for c in counts])


def compared(ours: Sequence[bytes], theirs: Sequence[bytes], height: int, width: int, most: float) -> str:
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    if same == len(ours):
        return f"{same}/{len(ours)} strings identical"
    wrong = int(np.count_nonzero(pixels(ours, height, width) != pixels(theirs, height, width)))
    assert wrong <= most * len(ours) * height * width, wrong
    return f"{same}/{len(ours)} strings identical, {wrong} px differ of {len(ours) * height * width / 1e6:.0f} M"


def torchvision(debian: Debian, head: Head, goal: float | None) -> Peer:
    def agrees() -> str:
        return compared(paste_rles(*head), debian.call("paste_rles", *head), *head[2:], most=1e-6)

    run = partial(debian.again_s, "paste_rles")
    return Peer("torchvision", f"0.14.1 {COCO}", run, agrees, goal)


def opencv(head: Head, goal: float | None) -> Peer:
    def agrees() -> str:
        # OpenCV's resize rounds its weights: results may differ along edges.
        return compared(paste_rles(*head), by_opencv(*head), *head[2:], most=1e-4)

    return Peer("OpenCV resize within the box", f"{cv2.__version__} {COCO}", partial(by_opencv, *head), agrees, goal)


def detectron2(head: Head) -> Peer:
    def agrees() -> str:
        ours = paste_rles(*head, whole_pixels=False)
        return compared(ours, by_detectron2(*head), *head[2:], most=1e-6)

    return Peer("detectron2's grid_sample", f"torch {version('torch')} {COCO}", partial(by_detectron2, *head), agrees)


def cases() -> Iterator[Case]:
    masks, small = blobs(100, 0), random_boxes(100, 800, 1333, 1)
    head: Head = (masks, small, 800, 1333)
    noise: Head = (np.random.default_rng(2).random((100, SIDE, SIDE)).astype(np.float32), small, 800, 1333)
    same_in_4k: Head = (masks, small, 2160, 3840)
    grown: Head = (masks, small * np.float32(2.7), 2160, 3840)
    with Debian(ROOT / "tests/oracles/torchvision_ops.py") as debian:
        name = "100 masks 28x28 to RLE"
        yield Case(f"{name}, 800x1333", partial(paste_rles, *head), (torchvision(debian, head, 250), opencv(head, 45)))
        yield Case(f"{name}, detectron2's way", partial(paste_rles, *head, whole_pixels=False), (detectron2(head),))
        yield Case(f"{name}, same boxes, 2160x3840", partial(paste_rles, *same_in_4k), (opencv(same_in_4k, None),))
        yield Case(f"{name}, boxes grown with it, 2160x3840", partial(paste_rles, *grown), (opencv(grown, None),))
        peers = (torchvision(debian, noise, None), opencv(noise, None))
        yield Case(f"{name}, noise, 800x1333", partial(paste_rles, *noise), peers, worst=True)
