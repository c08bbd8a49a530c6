"""Time to decode a result: 100 masks of a 1080p image, compared with pycocotools and supervision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import supervision as sv
from pycocotools import mask as coco

from bench.closed_loop import measure
from segserve import InstanceResult
from segserve.calls.answers import read_result
from segserve.results.values import ModelInfo
from segserve_common.kserve import InferAnswer, Tensor

HEIGHT: Final = 1080
WIDTH: Final = 1920
COUNT: Final = 100
INFO: Final = ModelInfo("discs", frozenset({"MASKS"}), "discs-aaaaaaaaaa")


def masks(count: int = COUNT, height: int = HEIGHT, width: int = WIDTH, largest: int = 200) -> np.ndarray:
    """Return discs of radiuses from 10 to `largest`, bool (count, height, width)."""
    random = np.random.default_rng(0)
    rows, columns = np.ogrid[:height, :width]
    places = zip(random.integers(0, height, count), random.integers(0, width, count), strict=True)
    sizes = random.integers(10, largest, count)
    return np.stack(
        [(rows - y) ** 2 + (columns - x) ** 2 < size**2 for (y, x), size in zip(places, sizes, strict=True)]
    )


def answer(bitmaps: np.ndarray) -> InferAnswer:
    """Return the response of a model with these masks."""
    count, *size = bitmaps.shape
    counts = [coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"] for bitmap in bitmaps]
    numbers = {
        "SIZE": np.array(size, np.int32),
        "BOXES": sv.mask_to_xyxy(bitmaps).astype(np.float32),
        "SCORES": np.linspace(1, 0, count, dtype=np.float32),
        "CLASSES": np.zeros(count, np.int32),
    }
    items = {"REVISION": [b"discs-aaaaaaaaaa"], "MASKS": counts}
    tensors = {name: Tensor.of_array(name, array) for name, array in numbers.items()}
    return InferAnswer("discs", tensors | {name: Tensor.of_items(name, each) for name, each in items.items()})


def fresh(result: InstanceResult) -> InstanceResult:
    """Return the result with no mask decoded yet."""
    return replace(result, instances=tuple(replace(one, encoded=replace(one.encoded)) for one in result.instances))


def rles(result: InstanceResult) -> list[dict[str, Any]]:
    return [{"size": [HEIGHT, WIDTH], "counts": one.encoded.data} for one in result.instances]


def targets(result: InstanceResult) -> dict[str, Callable[[], Any]]:
    """Return the compared calls: the masks as bool arrays, their areas, and supervision's Detections."""
    encoded = rles(result)
    boxes = np.array([one.box for one in result.instances], np.float32)
    scores = np.array([one.score for one in result.instances], np.float32)
    classes = np.array([one.class_id for one in result.instances])

    def by_hand() -> Any:
        mask = coco.decode(encoded).transpose(2, 0, 1).astype(bool)
        return sv.Detections(boxes, mask=mask, confidence=scores, class_id=classes)

    return {
        "all masks, segserve": lambda: [one.mask for one in fresh(result).instances],
        "all masks, pycocotools": lambda: [coco.decode(one).astype(bool) for one in encoded],
        "all masks, supervision": lambda: [sv.rle_to_mask(one["counts"].decode(), (WIDTH, HEIGHT)) for one in encoded],
        "areas, segserve": lambda: fresh(result).areas,
        "areas, pycocotools": lambda: coco.area(encoded),
        "boxes of masks, segserve": lambda: fresh(result).mask_boxes,
        "boxes of masks, pycocotools": lambda: coco.toBbox(encoded),
        "supervision Detections, segserve": lambda: fresh(result).to_supervision(),
        "supervision Detections, pycocotools by hand": by_hand,
    }


def check(calls: dict[str, Callable[[], Any]], bitmaps: np.ndarray) -> None:
    """Exit if any of the calls decodes other masks."""
    for name in ("segserve", "pycocotools", "supervision"):
        if not all(map(np.array_equal, calls[f"all masks, {name}"](), bitmaps)):
            raise SystemExit(f"{name} decodes other masks")
    detections = [calls[f"supervision Detections, {name}"]() for name in ("segserve", "pycocotools by hand")]
    if not all(np.array_equal(np.asarray(each.mask), bitmaps) for each in detections):
        raise SystemExit("the Detections have other masks")
    x, y, width, height = calls["boxes of masks, pycocotools"]().T
    boxes = np.stack([x, y, x + width, y + height], 1)
    if not np.array_equal(calls["boxes of masks, segserve"](), boxes):
        raise SystemExit("the masks have other boxes")
    if not np.array_equal(calls["areas, segserve"](), calls["areas, pycocotools"]()):
        raise SystemExit("the masks have other areas")


def decoding(rounds: int) -> dict[str, Any]:
    """Return the median milliseconds of each call, and the ratios of ours to the peers', over alternating rounds."""
    bitmaps = masks()
    result: Any = read_result(answer(bitmaps), INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools on numpy 2
        calls = targets(result)
        check(calls, bitmaps)
        del bitmaps
        latencies = measure(calls, concurrency=1, rounds=rounds, calls=1)
    ratios = {
        f"{name} / {other.split(', ')[1]}": round(latencies[name].median_ratio(latencies[other]), 3)
        for name in calls
        for other in calls
        if name.endswith("segserve") and other != name and other.split(", ")[0] == name.split(", ")[0]
    }
    return {"ms": {name: round(each.percentile(50), 2) for name, each in latencies.items()}, "ratios": ratios}
