"""Labelled images of a gateway's two models: data sets in each form, and the labels as arrays."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fakes.kserve import Arrays, Asked, Gateway, Model, items
from segserve import Client
from segserve_platform.cli.app import main

from ..conftest import INSTANCE, SEMANTIC, parameters, png, rle_counts

Command = Callable[..., tuple[int, str, str]]
COUNT, HEIGHT, WIDTH = 6, 60, 80
CLASSES = {0: "background", 1: "coin", 2: "button"}
PANOPTIC = ["REVISION", "SIZE", "LABELS", "SEGMENTS", "MASKS"]


@dataclass(frozen=True)
class Disc:
    """An object of a drawn image."""

    class_id: int
    x: int
    y: int
    radius: int
    score: float = 1.0

    @property
    def mask(self) -> np.ndarray:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        return (rows - self.y) ** 2 + (columns - self.x) ** 2 < self.radius**2

    @property
    def box(self) -> list[float]:
        """Corner and size."""
        rows, columns = np.nonzero(self.mask)
        left, top = float(columns.min()), float(rows.min())
        return [left, top, columns.max() + 1 - left, rows.max() + 1 - top]


def scenes() -> tuple[list[list[Disc]], list[list[Disc]]]:
    """Return the discs of each image, and of what the models find: moved, missing, invented, of another class."""
    numbers = np.random.default_rng(7)
    true, found = list[list[Disc]](), list[list[Disc]]()
    for _ in range(COUNT):
        places = [(x, y) for x in (14, 40, 66) for y in (15, 45)]
        discs = [Disc(int(numbers.integers(1, 3)), x, y, int(numbers.integers(6, 13))) for x, y in places[:-1]]
        seen = []
        for disc in discs:
            if numbers.random() < 0.15:
                continue
            moved = numbers.integers(-2, 3, 2)
            class_id = disc.class_id if numbers.random() < 0.85 else 3 - disc.class_id
            place = (int(disc.x + moved[0]), int(disc.y + moved[1]))
            seen.append(Disc(class_id, *place, disc.radius, round(float(numbers.uniform(0.3, 1)), 3)))
        if numbers.random() < 0.5:
            seen.append(Disc(1, *places[-1], 7, 0.4))
        true.append(discs)
        found.append(sorted(seen, key=lambda each: -each.score))
    return true, found


TRUE, FOUND = scenes()


def label_map(discs: list[Disc]) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for disc in discs:
        labels[disc.mask] = disc.class_id
    return labels


def id_map(discs: list[Disc]) -> np.ndarray:
    """Return the number of the disc that each pixel is of; those of none are of the last number."""
    ids = np.full((HEIGHT, WIDTH), len(discs) + 1, np.uint8)
    for number, disc in enumerate(discs, 1):
        ids[disc.mask] = number
    return ids


def image_of(index: int) -> bytes:
    return png(np.full((HEIGHT, WIDTH, 3), 40 * index, np.uint8))


def index_of(asked: Asked) -> int:
    """Return which image was sent."""
    with Image.open(io.BytesIO(asked.inputs["IMAGE"].ravel()[0])) as image:
        return int(np.asarray(image)[0, 0, 0]) // 40


def semantic(asked: Asked) -> Arrays:
    labels = label_map(FOUND[index_of(asked)])
    return {
        "REVISION": items(b"pixels-aaaaaaaaaa"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "LABELS": items(png(labels)),
        "MASKS": items(),
        "CLASSES": np.array([0, 1, 2], np.int32),
        "AREAS": np.array([(labels == number).sum() for number in CLASSES], np.int64),
    }


def confident(asked: Asked) -> Arrays:
    found = semantic(asked)
    numbers = np.random.default_rng(index_of(asked))
    return found | {"CONFIDENCE": np.where(found["AREAS"] > 0, numbers.uniform(0.4, 1, 3), 0).astype(np.float32)}


def instances(asked: Asked) -> Arrays:
    discs = FOUND[index_of(asked)]
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (disc.box for disc in discs)]
    return {
        "REVISION": items(b"discs-bbbbbbbbbb"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "BOXES": np.array(boxes, np.float32).reshape(-1, 4),
        "SCORES": np.array([disc.score for disc in discs], np.float32),
        "CLASSES": np.array([disc.class_id for disc in discs], np.int32),
        "MASKS": items(*(rle_counts(disc.mask) for disc in discs)),
    }


def segments(asked: Asked) -> Arrays:
    discs = FOUND[index_of(asked)]
    ids = id_map(discs)
    rows = [
        {"id": number, "class": class_id, "isThing": class_id > 0, "score": 0.9, "area": int((ids == number).sum()),
         "box": [0, 0, WIDTH, HEIGHT]}
        for number, class_id in enumerate([*(disc.class_id for disc in discs), 0], 1)
    ]  # fmt: skip
    return {
        "REVISION": items(b"world-cccccccccc"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "LABELS": items(png(ids)),
        "SEGMENTS": items(json.dumps(rows).encode()),
        "MASKS": items(),
    }


@dataclass
class Served:
    """A gateway, its URL, and how many images each model was asked."""

    gateway: Gateway
    url: str

    def count(self, model: str) -> int:
        return sum(asked.model == model for asked in self.gateway.asked)

    def answer_as(self, model: str, revision: str, configured: str | None = None) -> None:
        """Let another revision answer; the model's configuration says `configured` if it is behind."""
        served = self.gateway.models[model]
        known = {**served.parameters, "revision": configured or revision}

        def answer(asked: Asked) -> Arrays:
            return {**served.answer(asked), "REVISION": items(revision.encode())}

        self.gateway.models[model] = Model(served.outputs, known, answer)


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make images five times as large, with objects that COCO calls small, medium and large; before `folder`."""

    def larger(scene: list[Disc]) -> list[Disc]:
        return [
            replace(disc, x=5 * disc.x, y=5 * disc.y, radius=disc.radius * (1 if (disc.x + disc.y) % 3 == 0 else 5))
            for disc in scene
        ]

    for name, value in (
        ("HEIGHT", 5 * HEIGHT),
        ("WIDTH", 5 * WIDTH),
        ("TRUE", [larger(scene) for scene in TRUE]),
        ("FOUND", [larger(scene) for scene in FOUND]),
    ):
        monkeypatch.setitem(globals(), name, value)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    classes = {"classes": json.dumps([{"id": number, "name": name} for number, name in CLASSES.items()])}
    gateway = Gateway(
        models={
            "pixels": Model(SEMANTIC[:-1], parameters("pixels-aaaaaaaaaa") | classes, semantic),
            "sure": Model(SEMANTIC, parameters("sure-aaaaaaaaaa") | classes, confident),
            "discs": Model(INSTANCE, parameters("discs-bbbbbbbbbb") | classes, instances),
            "boxes": Model(INSTANCE[:-1], parameters("discs-bbbbbbbbbb") | classes, instances),
            "world": Model(PANOPTIC, parameters("world-cccccccccc") | classes, segments),
        }
    )
    with gateway.http() as url:
        monkeypatch.setenv("SEGSERVE_URL", url)
        yield Served(gateway, url)


def coco_document() -> dict[str, Any]:
    """Return the labels as COCO, with the categories' ids as labelling tools number them."""
    annotations = [
        {"image_id": index, "category_id": 10 * disc.class_id, "bbox": disc.box, "area": int(disc.mask.sum()),
         "iscrowd": 0, "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle_counts(disc.mask).decode()}}
        for index, discs in enumerate(TRUE) for disc in discs
    ]  # fmt: skip
    images = range(COUNT)
    return {
        "images": [{"id": index, "file_name": f"{index}.png", "height": HEIGHT, "width": WIDTH} for index in images],
        "categories": [{"id": 10, "name": "coin"}, {"id": 20, "name": "button"}],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, 1)],
    }


def coco_sides(folder: Path, model: str) -> tuple[COCO, list[dict[str, Any]]]:
    """Return the labels and a model's answers as pycocotools takes them."""
    with Client() as client:
        answers = [client.segment(image_of(index), model=model).to_coco(image_id=index) for index in range(COUNT)]
    results = [{**each, "category_id": 10 * each["category_id"]} for one in answers for each in one["annotations"]]
    return COCO(str(folder / "coco/coco.json")), results


def matches(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the objects that `discs` finds, and whether pycocotools matches them at an IoU of 0.5."""
    truth, results = coco_sides(folder, "discs")
    judge = COCOeval(truth, truth.loadRes(results), "segm")
    judge.evaluate()
    of_all = [each for each in judge.evalImgs if each and each["aRng"] == [0, 1e10]]
    scores = np.concatenate([each["dtScores"] for each in of_all])
    return scores, np.concatenate([each["dtMatches"][0] > 0 for each in of_all])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, label maps, and the same labels as COCO in `coco.json` and `panoptic.json` of folders of their own."""
    for name in ("images", "labels", "coco", "panoptic/panoptic"):
        (tmp_path / name).mkdir(parents=True)
    pages = []
    for index, discs in enumerate(TRUE):
        (tmp_path / "images" / f"{index}.png").write_bytes(image_of(index))
        (tmp_path / "labels" / f"{index}.png").write_bytes(png(label_map(discs)))
        ids = id_map(discs)
        (tmp_path / "panoptic/panoptic" / f"{index}.png").write_bytes(png(np.stack([ids, ids * 0, ids * 0], 2)))
        rows = [{"id": number, "category_id": disc.class_id} for number, disc in enumerate(discs, 1)]
        pages.append({"image_id": index, "file_name": f"{index}.png",
                      "segments_info": [*rows, {"id": len(discs) + 1, "category_id": 0}]})  # fmt: skip
    coco = coco_document()
    (tmp_path / "coco/coco.json").write_text(json.dumps(coco))
    names = [{"id": number, "name": name, "isthing": int(number > 0)} for number, name in CLASSES.items()]
    panoptic = {"images": coco["images"], "categories": names, "annotations": pages}
    (tmp_path / "panoptic/panoptic.json").write_text(json.dumps(panoptic))
    return tmp_path


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `segserve ...` in an empty folder; returns its exit code, what it printed and what it complained of."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("HOME", str(tmp_path / "home")), ("NO_COLOR", "1"), ("COLUMNS", "160")):
        monkeypatch.setenv(name, value)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["segserve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run
