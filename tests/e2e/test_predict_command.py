"""`segserve predict` against the running system."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from bench.platform import Running
from segserve import Client
from segserve.results.masks import EncodedMask

pytestmark = [pytest.mark.platform, pytest.mark.core]


@pytest.fixture
def images(photo: bytes, tmp_path: Path) -> list[str]:
    """The photograph in two files, in different formats."""
    paths = [tmp_path / "one.png", tmp_path / "two.webp"]
    paths[0].write_bytes(photo)
    with Image.open(io.BytesIO(photo)) as image:
        image.save(paths[1], lossless=True)
    return [str(path) for path in paths]


def test_a_table_and_overlays_are_made_of_several_images(coins: Running, images: list[str], tmp_path: Path) -> None:
    overlays = tmp_path / "overlays"

    printed = coins.segserve(
        "predict", "coins", *images, "-o", str(overlays), "--url", coins.url, "--transport", "grpc"
    )

    with Client(coins.url) as client:
        assert printed.count(str(client.model_info("coins").revision)) == 2
    assert sorted(path.name for path in overlays.iterdir()) == ["one.png", "two.png"]
    for path in overlays.iterdir():
        with Image.open(path) as overlay:
            assert overlay.size == (384, 303)


def test_json_is_a_coco_data_set_of_what_the_client_finds(coins: Running, images: list[str]) -> None:
    printed = coins.segserve(
        "predict", "coins-instances", *images, "--json", "--max-detections", "20", "--url", coins.url
    )

    document = json.loads(printed)
    with Client(coins.url) as client:
        best = [*client.segment(images[0], model="coins-instances")][:20]
    assert [item["file_name"] for item in document["images"]] == ["one.png", "two.webp"]
    for item, one in zip(document["annotations"], best * 2, strict=True):
        mask = EncodedMask(item["segmentation"]["counts"].encode(), *item["segmentation"]["size"])
        assert (mask.bitmap == one.mask).all()
        assert item["score"] == pytest.approx(one.score, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        ("coins", "text.png", "not a JPEG, PNG, WebP or TIFF"),
        ("nope", "text.png", "unknown model 'nope'"),
        ("coins", "missing.png", "cannot read image"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    coins: Running, tmp_path: Path, model: str, file: str, message: str
) -> None:
    (tmp_path / "text.png").write_text("hello")

    with pytest.raises(RuntimeError, match=message) as caught:
        coins.segserve("predict", model, str(tmp_path / file), "--url", coins.url)

    assert "Traceback" not in str(caught.value)
