"""Draws docs/images/families.png, what trained networks find: `PYTHONPATH=tests python -m networks.pictures`."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from bench.platform import MODELS, ROOT, platform
from e2e import test_two_networks
from segserve import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

OUT = ROOT / "docs/images/families.png"
TILE, GAP, CAPTION, COLUMNS = 150, 6, 16, 5
TRAINED = {
    "semantic-logits": "zoo-unet",
    "yolo-seg": "zoo-yolo-seg",
    "mask-rcnn": "zoo-mask-rcnn",
    "maskformer": "zoo-maskformer",
}


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


def main() -> None:
    warnings.simplefilter("ignore")  # of tracing
    with tempfile.TemporaryDirectory() as made:
        zoo = list(yaml.safe_load_all((ROOT / "examples/zoo/zoo.yaml").read_text()))
        trained = [one for one in zoo if one["metadata"]["name"] in TRAINED.values()]
        for one in trained:
            one["spec"]["artifact"]["uri"] = (ROOT / "examples/zoo" / one["spec"]["artifact"]["uri"]).as_uri()
        both = test_two_networks.both()
        file = Path(made) / "models.yaml"
        file.write_text(yaml.safe_dump_all([*trained, both]))
        with platform(file) as running, Client(running.url) as client:
            tiles = [*trained_tiles(client)]
    sheet(tiles).quantize(64, dither=Image.Dither.NONE).save(OUT, optimize=True)


def trained_tiles(client: Client) -> Iterator[Image.Image]:
    drawn = scene()
    for family, model in TRAINED.items():
        least = None if family == "semantic-logits" else 0.5
        found = client.segment(drawn, model=model, score_threshold=least)
        yield tile(found.overlay(drawn, labels=False), family)
    coins = Image.open(MODELS.parent / "coins.png").convert("RGB")
    yield tile(client.segment(coins, model="both").overlay(coins, labels=False), "two networks")


if __name__ == "__main__":
    main()
