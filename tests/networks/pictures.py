"""Draws docs/images/families.png, a tile a family: `PYTHONPATH=tests python -m networks.pictures`.

Trained networks of the examples show what they learned. Those with random weights show on a photograph what they make
of it, which means nothing: their tests compare it with the project that exports them.
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from bench.platform import MODELS, ROOT, platform
from e2e import (
    test_box_families,
    test_hugging_face_families,
    test_own_layouts,
    test_torchvision_families,
    test_two_networks,
)
from networks import hugging_face, yolo
from oracles.debian import Debian
from segserve import Client
from tools import DEBIAN_PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

OUT = ROOT / "docs/images/families.png"
ORACLES = ROOT / "tests/oracles"
TILE, GAP, CAPTION, COLUMNS = 150, 6, 16, 6
MOST = 6  # objects of a network that only guesses
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#ffe119", "#f58231", "#911eb4", "#46f0f0")
TRAINED = {
    "semantic-logits": "zoo-unet",
    "yolo-seg": "zoo-yolo-seg",
    "mask-rcnn": "zoo-mask-rcnn",
    "maskformer": "zoo-maskformer",
}
UNSCORED = {"m2f-panoptic": "mask2former", "detr-panoptic": "detr-panoptic", "multi-label": "semantic, multi-label"}


def random_networks(folder: Path) -> list[dict[str, Any]]:
    """Write the tests' networks, and return a resource for each family that no trained one shows."""
    subprocess.run([DEBIAN_PYTHON, ORACLES / "export_torchvision.py", folder], check=True)
    transformers = ("m2f-panoptic", "detr", "detr-panoptic")
    for model in transformers:
        name = test_hugging_face_families.MODELS[model][0]
        hugging_face.NETWORKS[name]().write(folder / f"{name}.onnx")
    resources = [test_hugging_face_families.resource(folder, model) for model in transformers]
    resources += [test_torchvision_families.resource(folder, name) for name in ("faster-rcnn", "keypoint-rcnn")]
    with Debian(ORACLES / "export_anchors.py") as debian:
        for name, (size, ids) in test_box_families.ANCHORS.items():
            debian.call("export", name, 0, str(folder / f"{name}.onnx"))
            normalised = [test_box_families.IMAGENET]
            resources.append(test_box_families.resource(folder, name, ids, size, normalised))
    for name, (layout, masks) in test_box_families.YOLO.items():
        if name not in TRAINED:
            yolo.Network(layout, masks).write(folder / f"{name}.onnx")
            resources.append(test_box_families.resource(folder, name, range(yolo.CLASSES), (yolo.SIDE, yolo.SIDE), []))
    test_own_layouts.network("multi-label").write(folder / "multi-label.onnx")
    return [*resources, test_own_layouts.resource(folder, "multi-label")]


def tile(overlay: Image.Image, caption: str) -> Image.Image:
    picture = Image.new("RGB", (TILE, TILE + CAPTION), "white")
    picture.paste(overlay.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))
    ImageDraw.Draw(picture).text((1, TILE + 2), caption, "black", ImageFont.load_default(11))
    return picture


def sheet(tiles: list[Image.Image]) -> Image.Image:
    rows = -(-len(tiles) // COLUMNS)
    size = (COLUMNS * (TILE + GAP) - GAP, rows * (TILE + CAPTION + GAP) - GAP)
    whole = Image.new("RGB", size, "white")
    for index, one in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        whole.paste(one, (column * (TILE + GAP), row * (TILE + CAPTION + GAP)))
    return whole


def scene() -> NDArray[np.uint8]:
    """Return a picture of the world that the zoo was trained in."""
    from examples.zoo import world

    pixels: NDArray[np.uint8] = world.draw_scene(np.random.default_rng(5)).image
    return pixels


def coloured(resource: dict[str, Any]) -> dict[str, Any]:
    for known, colour in zip(resource["spec"]["classes"], COLOURS, strict=False):
        known.setdefault("colour", colour)
    return resource


def main() -> None:
    warnings.simplefilter("ignore")  # of tracing
    with tempfile.TemporaryDirectory() as made:
        zoo = list(yaml.safe_load_all((ROOT / "examples/zoo/zoo.yaml").read_text()))
        trained = [one for one in zoo if one["metadata"]["name"] in TRAINED.values()]
        for one in trained:
            one["spec"]["artifact"]["uri"] = (ROOT / "examples/zoo" / one["spec"]["artifact"]["uri"]).as_uri()
        others = random_networks(Path(made))
        both = test_two_networks.both()
        file = Path(made) / "models.yaml"
        file.write_text(yaml.safe_dump_all([*trained, both, *map(coloured, others)]))
        with platform(file) as running, Client(running.url) as client:
            tiles = [*trained_tiles(client), *random_tiles(client, [one["metadata"]["name"] for one in others])]
    sheet(tiles).quantize(64, dither=Image.Dither.NONE).save(OUT, optimize=True)


def trained_tiles(client: Client) -> Iterator[Image.Image]:
    drawn = scene()
    for family, model in TRAINED.items():
        least = None if family == "semantic-logits" else 0.5
        found = client.segment(drawn, model=model, score_threshold=least)
        yield tile(found.overlay(drawn, labels=False), f"{family} *")
    coins = Image.open(MODELS.parent / "coins.png").convert("RGB")
    yield tile(client.segment(coins, model="both").overlay(coins, labels=False), "two networks *")


def random_tiles(client: Client, names: list[str]) -> Iterator[Image.Image]:
    import skimage.data

    photo = cv2.resize(skimage.data.astronaut(), (TILE, TILE), interpolation=cv2.INTER_AREA)
    for name in names:
        most = None if name in UNSCORED else MOST
        found = client.segment(photo, model=name, max_detections=most)
        yield tile(found.overlay(photo, labels=False), UNSCORED.get(name, name))


if __name__ == "__main__":
    main()
