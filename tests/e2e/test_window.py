"""Images of 12 bits in 16 through the real gateway: with a window they have the answers of their 8-bit originals."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.coins import variant, write
from bench.platform import Running
from examples.coins.score import photograph
from segserve import Client, SemanticResult
from segserve.tiled import TiledSemanticResult

pytestmark = pytest.mark.platform

STEPS = [{"decode": {"window": [0, 4080]}}, {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}]


def test_files_arrays_and_tiles_of_16_bits_meet_the_window(serve: Callable[..., Running], tmp_path: Path) -> None:
    running = serve(write(tmp_path / "model.yaml", variant(preprocess=STEPS)))
    photo = photograph()
    deep = photo.astype(np.uint16) * 16  # which the window spreads to 257 times the photo, whose high byte it is
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")

    with Client(running.url) as client, Client(running.url, transport="grpc") as by_grpc:
        expected = client.segment(photo, model="coins", expect=SemanticResult).labels
        found = [
            each.segment(image, model="coins", expect=SemanticResult).labels
            for each in (client, by_grpc)
            for image in (deep, file.getvalue())
        ]
        tiled = [
            client.segment_tiled(image, model="coins", tile=256, overlap=128, expect=TiledSemanticResult).labels
            for image in (photo, deep, file.getvalue())
        ]

    assert expected.any()
    for labels in found:
        np.testing.assert_array_equal(labels, expected)
    for labels in tiled[1:]:
        np.testing.assert_array_equal(labels, tiled[0])
