"""Masks to polygons, compared with OpenCV's contours of whole bitmaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np
from pycocotools import mask as coco
from scipy import ndimage

from bench.stages.case import Case, Peer
from bench.stages.paste import blobs, random_boxes
from segserve_builder.imaging.masks import polygons_json
from segserve_builder.kernels.paste import paste_rles
from segserve_builder.kernels.rle_reader import decode, decode_bitmap

HEIGHT, WIDTH = 800, 1333


def ours(counts: tuple[bytes, ...], tolerance: float | None) -> list[bytes]:
    """Convert run lengths to the JSON of a response."""
    return [polygons_json(decode(mask, HEIGHT, WIDTH), tolerance) for mask in counts]


def by_opencv(bitmaps: list[np.ndarray], tolerance: float | None) -> list[bytes]:
    """Trace the contours of existing bitmaps; they connect the centres of border pixels."""
    made = []
    for bitmap in bitmaps:
        method = cv2.CHAIN_APPROX_SIMPLE if tolerance is None else cv2.CHAIN_APPROX_NONE
        rings, _ = cv2.findContours(bitmap, cv2.RETR_EXTERNAL, method)
        if tolerance is not None:
            rings = tuple(cv2.approxPolyDP(ring, tolerance, closed=True) for ring in rings)
        made.append(json.dumps([ring.ravel().tolist() for ring in rings], separators=(",", ":")).encode())
    return made


def rasterised(data: bytes) -> np.ndarray:
    rings = [[float(number) for number in ring] for ring in json.loads(data) if len(ring) >= 6]
    if not rings:
        return np.zeros((HEIGHT, WIDTH), np.uint8)
    return coco.decode(coco.merge(coco.frPyObjects(rings, HEIGHT, WIDTH)))


def overlap(made: list[bytes], bitmaps: list[np.ndarray]) -> float:
    """Return the mean IoU of polygons, filled by pycocotools, and masks with filled holes."""
    ious = []
    for data, bitmap in zip(made, bitmaps, strict=True):
        mask, filled = ndimage.binary_fill_holes(bitmap), rasterised(data).astype(bool)
        ious.append(np.count_nonzero(mask & filled) / np.count_nonzero(mask | filled))
    return float(np.mean(ious))


def peer(
    counts: tuple[bytes, ...], bitmaps: list[np.ndarray], tolerance: float | None, goal: float, least_iou: float
) -> Peer:
    def agrees() -> str:
        made, theirs = ours(counts, tolerance), by_opencv(bitmaps, tolerance)
        assert [len(json.loads(data)) for data in made] == [len(json.loads(data)) for data in theirs]
        iou, their_iou = overlap(made, bitmaps), overlap(theirs, bitmaps)
        assert iou >= max(least_iou, their_iou), (iou, their_iou)
        return f"mean IoU with the mask {iou:.4g}, theirs {their_iou:.4g}"

    name = "findContours of whole bitmaps" + (" + approxPolyDP" if tolerance else "")
    return Peer(name, cv2.__version__, partial(by_opencv, bitmaps, tolerance), agrees, goal)


def cases() -> Iterator[Case]:
    counts = tuple(
        mask for mask in paste_rles(blobs(100, 0), random_boxes(100, HEIGHT, WIDTH, 1), HEIGHT, WIDTH) if len(mask) > 8
    )
    bitmaps = [decode_bitmap(mask, HEIGHT, WIDTH) for mask in counts]
    name = f"{len(counts)} masks to polygons, {HEIGHT}x{WIDTH}"
    exact = peer(counts, bitmaps, None, 3, 1)
    yield Case(f"{name}, exact", partial(ours, counts, None), (exact,))
    simple = peer(counts, bitmaps, 1.0, 3, 0.9)
    yield Case(f"{name}, within 1 px", partial(ours, counts, 1.0), (simple,))
    rng = np.random.default_rng(3)
    noisy = tuple(
        mask
        for mask in paste_rles(
            rng.random((20, 28, 28)).astype(np.float32), random_boxes(20, HEIGHT, WIDTH, 4), HEIGHT, WIDTH
        )
        if len(mask) > 8
    )
    bitmaps = [decode_bitmap(mask, HEIGHT, WIDTH) for mask in noisy]
    worst = peer(noisy, bitmaps, None, 3, 1)
    yield Case(f"{len(noisy)} noise masks to polygons, exact", partial(ours, noisy, None), (worst,), worst=True)
