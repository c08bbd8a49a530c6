"""Bitmaps to RLE, compared with pycocotools and the copy to Fortran order that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from bench.stages.case import Case, Peer
from bench.stages.paste import blobs, pixels, random_boxes
from segserve_builder.kernels.paste import paste_rles
from segserve_builder.kernels.rle import encode_bitmap

ROOT = Path(__file__).parents[2]

from oracles.debian import Debian  # noqa: E402

SIZE = (800, 1333)
PYCOCOTOOLS = version("pycocotools")


def ours(bitmaps: np.ndarray) -> list[bytes]:
    return [encode_bitmap(bitmap) for bitmap in bitmaps]


def by_pycocotools(bitmaps: np.ndarray) -> list[bytes]:
    return [coco.encode(np.asfortranarray(bitmap))["counts"] for bitmap in bitmaps]


def compared(actual: list[bytes], expected: list[bytes]) -> str:
    assert actual == expected
    return f"{len(actual)}/{len(expected)} strings identical"


def in_this_process(bitmaps: np.ndarray, goal: float | None) -> Peer:
    run = partial(by_pycocotools, bitmaps)
    name = f"{PYCOCOTOOLS}, numpy {np.__version__}"
    return Peer("pycocotools", name, run, lambda: compared(ours(bitmaps), run()), goal)


def in_debians(debian: Debian, bitmaps: np.ndarray, goal: float | None) -> Peer:
    def agrees() -> str:
        return compared(ours(bitmaps), debian.call("encode_rles", bitmaps))

    versions = debian.call("versions")
    name = f"{versions['pycocotools']}, numpy {versions['numpy']}"
    return Peer("pycocotools", name, partial(debian.again_s, "encode_rles"), agrees, goal)


def cases() -> Iterator[Case]:
    masks = np.ascontiguousarray(pixels(paste_rles(blobs(100, 0), random_boxes(100, *SIZE, 1), *SIZE), *SIZE))
    board = np.tile((np.indices(SIZE).sum(0) % 2).astype(np.uint8), (10, 1, 1))
    noise = np.random.default_rng(0).integers(0, 2, (10, *SIZE), np.uint8)
    with Debian(ROOT / "tests/oracles/torchvision_ops.py") as debian:
        peers = (in_debians(debian, masks, 15), in_this_process(masks, 15))
        yield Case("100 bitmaps 800x1333 to RLE", partial(ours, masks), peers)
    yield Case("10 checkerboards 800x1333 to RLE", partial(ours, board), (in_this_process(board, None),), worst=True)
    yield Case("10 bitmaps of noise 800x1333 to RLE", partial(ours, noise), (in_this_process(noise, None),), worst=True)
