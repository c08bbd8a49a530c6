"""A gateway whose models answer what is in the pixels: each object of the image has a grey of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from pycocotools import mask as coco

from fakes.kserve import Arrays, Asked, Gateway, Model, items
from segserve import Client

CLASSES = [
    {"id": 0, "name": "ground"},
    {"id": 1, "name": "coin", "colour": "#ffcc00"},
    {"id": 2, "name": "leaf"},
]
REVISION = "m-aaaaaaaaaa"
BOXES = ["REVISION", "SIZE", "BOXES", "SCORES", "CLASSES"]


def _grey(asked: Asked) -> np.ndarray:
    return asked.inputs["PIXELS"][:, :, 0]


def _head(grey: np.ndarray, revision: str) -> Arrays:
    return {"REVISION": items(revision.encode()), "SIZE": np.array(grey.shape, np.int32)}


def _raw(labels: np.ndarray) -> bytes:
    return labels.astype("<u2" if labels.max() > 255 else "u1").tobytes()


def parts(grey: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Return the connected parts that are not ground and their classes: greys below 128 are coins."""
    from scipy import ndimage

    found = []
    for value in np.unique(grey[grey > 0]).tolist():
        labels, count = ndimage.label(grey == value)
        found += [(labels == number, 1 if value < 128 else 2) for number in range(1, count + 1)]
    return found


@dataclass
class World:
    """The models' revision, which a test may change while tiles are on their way."""

    gateway: Gateway = field(default_factory=Gateway)
    revision: str = REVISION
    switch_after: int | None = None
    url: str = ""

    def now(self) -> str:
        if self.switch_after is not None and len(self.gateway.asked) > self.switch_after:
            self.revision = "m-bbbbbbbbbb"
        return self.revision

    def classes_of(self, asked: Asked) -> Arrays:
        grey = _grey(asked)
        labels = (grey > 0).astype(np.uint8) + (grey >= 128)
        counts = [int((labels == label).sum()) for label in range(3)]
        return _head(grey, self.now()) | {
            "LABELS": items(_raw(labels)),
            "MASKS": items(),
            "CLASSES": np.arange(3, dtype=np.int32),
            "AREAS": np.array(counts, np.int64),
        }

    def boxes_of(self, asked: Asked) -> Arrays:
        from scipy import ndimage

        grey = _grey(asked)
        found = parts(grey)
        boxes = [
            (columns.start, rows.start, columns.stop, rows.stop)
            for mask, _ in found
            for rows, columns in ndimage.find_objects(mask.astype(int))
        ]
        return _head(grey, self.now()) | {
            "BOXES": np.array(boxes, np.float32).reshape(-1, 4),
            "SCORES": np.array([0.5 + mask.mean() / 2 for mask, _ in found], np.float32),
            "CLASSES": np.array([class_id for _, class_id in found], np.int32),
        }

    def points_of(self, asked: Asked) -> Arrays:
        boxes = self.boxes_of(asked)
        corners = boxes["BOXES"].reshape(-1, 2, 2)
        return boxes | {"KEYPOINTS": np.concatenate([corners, np.ones((len(corners), 2, 1))], 2).astype(np.float32)}

    def objects_of(self, asked: Asked) -> Arrays:
        masks = [mask for mask, _ in parts(_grey(asked))]
        rles = [bytes(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]) for mask in masks]
        return self.boxes_of(asked) | {"MASKS": items(*rles)}

    def segments_of(self, asked: Asked) -> Arrays:
        grey = _grey(asked)
        ids = np.ones(grey.shape, np.uint16)
        table = [{"id": 1, "class": 0, "isThing": False, "score": 0.9, "area": 1, "box": [0, 0, 1, 1]}]
        for number, (mask, class_id) in enumerate(parts(grey), 2):
            ids[mask] = number
            table.append(
                {"id": number, "class": class_id, "isThing": True, "score": 0.8, "area": 1, "box": [0, 0, 1, 1]}
            )
        table[0]["area"] = int((ids == 1).sum())
        return _head(grey, self.now()) | {
            "LABELS": items(_raw(ids)),
            "SEGMENTS": items(json.dumps(table).encode()),
            "MASKS": items(),
        }

    @property
    def sent(self) -> int:
        return len(self.gateway.asked)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    answers = {
        "classes": (["REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS"], world.classes_of),
        "boxes": (BOXES, world.boxes_of),
        "points": ([*BOXES, "KEYPOINTS"], world.points_of),
        "objects": ([*BOXES, "MASKS"], world.objects_of),
        "segments": (["REVISION", "SIZE", "LABELS", "SEGMENTS", "MASKS"], world.segments_of),
    }
    for name, (outputs, answer) in answers.items():
        world.gateway.models[name] = Model(outputs, _Parameters(world), answer)
    with world.gateway.http() as world.url:
        yield world


class _Parameters(dict[str, str]):
    """The models' parameters as they are when they are asked for."""

    def __init__(self, world: World) -> None:
        super().__init__(revision="", classes=json.dumps(CLASSES))
        self._world = world

    def items(self):  # type: ignore[no-untyped-def]
        return {"revision": self._world.revision, "classes": self["classes"]}.items()


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(world.url) as client:
        yield client


@pytest.fixture(scope="session")
def scene() -> np.ndarray:
    """A grey image of 360 x 420 with discs anywhere, some over seams and corners of tiles, one larger than a tile."""
    image = np.zeros((360, 420), np.uint8)
    rows, columns = np.mgrid[:360, :420]
    random = np.random.default_rng(3)
    discs = [(64, 64, 20), (64, 160, 18), (160, 64, 15), (320, 330, 22), (20, 20, 9), (200, 270, 90)]
    for number, (y, x, radius) in enumerate(discs):
        image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 20 + 10 * number
    for number in range(25):
        y, x = random.integers(8, 352), random.integers(8, 412)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 49
        around = (rows - y) ** 2 + (columns - x) ** 2 < 90
        if not image[around].any():
            image[disc] = 129 + number
    return image
