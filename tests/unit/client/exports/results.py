"""Results to export: real answers, and masks that are hard to get right."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from segserve import (
    Detection,
    DetectionResult,
    Instance,
    InstanceResult,
    KeypointDetection,
    KeypointResult,
    PanopticResult,
    PanopticSegment,
    SegmentClass,
    SemanticResult,
)
from segserve.results.masks import EncodedMask
from segserve.results.result import Result

GOLDEN = Path(__file__).parents[4] / "examples/coins/golden"
CLASSES = (SegmentClass(0, "background"), SegmentClass(1, "cell & <wall>", (255, 204, 0)), SegmentClass(2, "naïve"))


def instances(masks: list[np.ndarray]) -> InstanceResult:
    encoded = [EncodedMask.of(mask) for mask in masks]
    found = (
        Instance(
            tuple(map(float, one.patch().box)),
            round(0.99 - 0.0015 * index, 4),
            1 + index % 2,
            CLASSES[1 + index % 2].name,
            one,
        )
        for index, one in enumerate(encoded)
    )
    return InstanceResult("m", "m-aaaaaaaaaa", masks[0].shape, CLASSES, tuple(found))


def coins() -> InstanceResult:
    """The 24 coins as a trained model answered them."""
    (case,) = json.loads((GOLDEN / "instances/golden.json").read_text())["cases"]
    answer = case["expected"]
    found = (
        Instance(tuple(box), score, 0, "coin", EncodedMask(counts.encode(), *answer["SIZE"]))
        for box, score, counts in zip(answer["BOXES"], answer["SCORES"], answer["MASKS"], strict=True)
    )
    return InstanceResult("c", "c-bbbbbbbbbb", tuple(answer["SIZE"]), (SegmentClass(0, "coin"),), tuple(found))


def coin_pixels() -> SemanticResult:
    """The coins' pixels as a trained model answered them."""
    (case,) = json.loads((GOLDEN / "semantic/golden.json").read_text())["cases"]
    answer = case["expected"]
    masks = {number: EncodedMask(counts.encode(), *answer["SIZE"]) for number, counts in enumerate(answer["MASKS"])}
    classes = (SegmentClass(0, "background"), SegmentClass(1, "coin"))
    areas = {known.name: masks[known.id].area for known in classes}
    confidence = {"background": 0.98, "coin": 0.97}
    return SemanticResult("c", "c-cccccccccc", tuple(answer["SIZE"]), classes, areas, confidence, None, masks)


def hard_masks() -> list[np.ndarray]:
    height, width = 40, 56
    rows, columns = np.mgrid[:height, :width]
    one_pixel, corner, border = (np.zeros((height, width), bool) for _ in range(3))
    one_pixel[17, 23] = True
    corner[-1, -1] = True
    border[:, :3] = border[-2:] = True
    rings = np.hypot(rows - 20, columns - 28) // 3 % 2 == 0
    diagonal = (rows == columns) | (rows + columns == height - 1)
    checkers = (rows + columns) % 2 == 0
    pinched = np.zeros((height, width), bool)
    pinched[5:12, 5:12] = True
    pinched[6:11, 6:11] = False
    pinched[11, 11] = False
    return [
        one_pixel,
        corner,
        border,
        rings,
        diagonal,
        checkers,
        pinched,
        np.ones((height, width), bool),
        np.zeros((height, width), bool),
        rows > 20,
    ]


def crowd() -> InstanceResult:
    """500 discs, which overlap."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:60, :100]
    places = zip(rng.integers(0, 60, 500), rng.integers(0, 100, 500), rng.integers(2, 8, 500), strict=True)
    return instances([np.hypot(rows - y, columns - x) < radius for y, x, radius in places])


def large() -> InstanceResult:
    rows, columns = np.ogrid[:2160, :3840]
    return instances([np.abs(np.hypot(rows - 900, columns - 1700) - 600) < 90 + 20 * np.sin(columns / 9)])


def panoptic() -> PanopticResult:
    ids = np.zeros((60, 80), np.uint16)
    ids[:30], ids[35:50, 20:60], ids[40:45, 30:40], ids[55:] = 1, 300, 70, 9
    segments = (
        PanopticSegment((0, 0, 80, 30), 0.9, 2, "naïve", id=1, is_thing=False, area=2400),
        PanopticSegment((20, 35, 60, 50), 0.8, 1, CLASSES[1].name, id=300, is_thing=True, area=550),
        PanopticSegment((30, 40, 40, 45), 0.7, 1, CLASSES[1].name, id=70, is_thing=True, area=50),
        PanopticSegment((0, 0, 5, 5), 0.6, 1, CLASSES[1].name, id=71, is_thing=True, area=0),
    )
    return PanopticResult("m", "m-aaaaaaaaaa", (60, 80), CLASSES, segments, ids.astype("<u2").tobytes(), {})


def boxes() -> DetectionResult:
    found = (Detection((5.5, 6, 40, 30.25), 0.75, 1, CLASSES[1].name), Detection((60, 40, 90, 70), 0.5, 2, "naïve"))
    return DetectionResult("m", "m-aaaaaaaaaa", (60, 80), CLASSES, found)


def people() -> KeypointResult:
    points = np.array([[12, 14, 0.9], [30, 22, 0.5]], np.float32)
    found = (KeypointDetection((5, 6, 40, 30), 0.75, 1, CLASSES[1].name, points),)
    return KeypointResult("m", "m-aaaaaaaaaa", (60, 80), CLASSES, found)


@cache
def cases() -> dict[str, Result]:
    return {
        "coins": coins(),
        "coin_pixels": coin_pixels(),
        "hard": instances(hard_masks()),
        "crowd": crowd(),
        "large": large(),
        "panoptic": panoptic(),
        "boxes": boxes(),
        "people": people(),
        "nothing": InstanceResult("m", "m-aaaaaaaaaa", (20, 30), CLASSES, ()),
    }


MASKED = ("coins", "coin_pixels", "hard", "crowd", "large", "panoptic")
