"""A sheet as a comparator tells it: answers of two revisions that differ, of each kind."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segserve_builder.comparator.sheet import Sheet, SheetPair
from segserve_builder.scoring.agreement import agreement
from segserve_common.kserve import Tensor

SIZE = (120, 160)
ASKED_AT_S = 1_700_000_000.0


def photo() -> bytes:
    """Return a PNG with a gradient."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.stack([rows + 60, columns + 40, 200 - rows], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def disc(x: int, y: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    mask: NDArray[np.bool_] = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return mask


def _common(revision: str) -> list[Tensor]:
    return [Tensor.of_items("REVISION", [revision.encode()]), Tensor.of_array("SIZE", np.array(SIZE, np.int32))]


def instances(revision: str, *discs: tuple[int, int, int], masks: bool = True) -> list[Tensor]:
    """Return an answer with discs (x, y, radius) of class 1, or with the boxes around them alone."""
    boxes = np.array([(x - r, y - r, x + r, y + r) for x, y, r in discs], np.float32).reshape(-1, 4)
    tensors = [
        *_common(revision),
        Tensor.of_array("BOXES", boxes),
        Tensor.of_array("SCORES", np.linspace(0.95, 0.6, len(discs)).astype(np.float32)),
        Tensor.of_array("CLASSES", np.ones(len(discs), np.int32)),
    ]
    if masks:
        drawn = [coco.encode(np.asfortranarray(disc(*each).astype(np.uint8)))["counts"] for each in discs]
        tensors.append(Tensor.of_items("MASKS", drawn))
    return tensors


def labels(revision: str, *discs: tuple[int, int, int]) -> list[Tensor]:
    """Return a label map in which discs are of class 1."""
    pixels = np.zeros(SIZE, np.uint8)
    for each in discs:
        pixels[disc(*each)] = 1
    return [
        *_common(revision),
        Tensor.of_items("LABELS", [pixels.tobytes()]),
        Tensor.of_items("MASKS", []),
        Tensor.of_array("CLASSES", np.array([0, 1], np.int32)),
        Tensor.of_array("AREAS", np.bincount(pixels.ravel(), minlength=2).astype(np.int64)),
    ]


def panoptic(revision: str, *discs: tuple[int, int, int]) -> list[Tensor]:
    """Return a panoptic map with a disc per segment of class 1."""
    ids = np.zeros(SIZE, np.uint8)
    rows = []
    for number, each in enumerate(discs, 1):
        ids[disc(*each)] = number
        rows.append({"id": number, "class": 1, "isThing": True, "score": 0.9, "area": 1, "box": [0, 0, 1, 1]})
    return [
        *_common(revision),
        Tensor.of_items("LABELS", [ids.tobytes()]),
        Tensor.of_items("SEGMENTS", [json.dumps(rows).encode()]),
        Tensor.of_items("MASKS", []),
    ]


def pair(image: Tensor, stable: list[Tensor], candidate: list[Tensor]) -> SheetPair:
    found = agreement(*({tensor.name: _array(tensor) for tensor in side} for side in (stable, candidate)))
    assert found is not None
    return SheetPair.of(ASKED_AT_S, image, stable, candidate, found)


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.array(tensor.to_items(), np.object_) if tensor.datatype == "BYTES" else tensor.to_array()


def sheet(*pairs: SheetPair) -> Sheet:
    return Sheet(model="coins", stable="main", candidate="coins-2", compared=212, pairs=pairs)
