"""Coins on the seams of tiles, compared by position with the same coins in one request for their photograph.

    python -m bench.archive.tiled_seams

Writes bench/out/tiled_seams.json.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from PIL import Image

from bench.platform import MODELS, ROOT, platform
from segserve import Client, InstanceResult
from segserve.tiled import TiledObjects

OUT = ROOT / "bench/out/tiled_seams.json"
ROWS, COLUMNS = 3, 4
CASES = ((384, 192), (384, 128), (512, 192))


def compared(photo: InstanceResult, tiled: TiledObjects) -> dict[str, Any]:
    """Return how many coins are detected exactly once at their position, and how much their areas differ."""
    height, width = photo.size
    objects = list(tiled)
    differences, shared = [], 0
    for row, column, coin in itertools.product(range(ROWS), range(COLUMNS), photo):
        x = (coin.box[0] + coin.box[2]) / 2 + column * width
        y = (coin.box[1] + coin.box[3]) / 2 + row * height
        here = [one for one in objects if one.box[0] <= x <= one.box[2] and one.box[1] <= y <= one.box[3]]
        if len(here) == 1:
            differences.append(abs(here[0].area - coin.area) / coin.area)
            shared += len(here[0].tiles) > 1
    return {
        "coins": ROWS * COLUMNS * len(photo),
        "objects": len(objects),
        "found_once": len(differences),
        "shown_by_several_tiles": shared,
        "area_differs_median": round(float(np.median(differences)), 4),
        "area_differs_most": round(max(differences), 4),
    }


def main() -> None:
    photo = np.asarray(Image.open(MODELS.parent / "coins.png").convert("L"))
    table = np.tile(photo, (ROWS, COLUMNS))
    figures = {}
    with platform(MODELS) as running, Client(running.url) as client:
        one = client.segment(photo, model="coins-instances")
        assert isinstance(one, InstanceResult)
        for tile, overlap in CASES:
            tiled = client.segment_tiled(table, model="coins-instances", tile=tile, overlap=overlap, progress=False)
            assert isinstance(tiled, TiledObjects)
            figures[f"{tile}, {overlap}"] = compared(one, tiled)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
