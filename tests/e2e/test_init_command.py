"""A new user's way: `segserve init` of an ONNX file, `up` of what it wrote, `predict` of a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.platform import MODELS, Running
from segserve import Client, InstanceResult

pytestmark = pytest.mark.platform

COINS = MODELS.parent


def test_what_init_writes_is_served_and_answers_as_the_committed_model(
    coins: Running, serve: Callable[..., Running], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for target in (photos / "a.png", photos / "more/b.png"):
        shutil.copy(COINS / "coins.png", target)
    (photos / "more/broken.jpg").write_text("hello")
    out = tmp_path / "found"
    coins.segserve("init", str(photos), str(COINS / "coins-yolo.onnx"), "--name", "found", "-o", str(out))

    mine = serve(out / "model.yaml")

    with Client(mine.url) as ours, Client(coins.url) as theirs:
        guessed = ours.segment(photos / "a.png", model="found")
        committed = theirs.segment(photos / "a.png", model="coins-instances")
    assert isinstance(guessed, InstanceResult)
    assert isinstance(committed, InstanceResult)
    assert len(guessed) == len(committed) == 24
    for one in committed:
        overlaps = [(one.mask & other.mask).sum() / (one.mask | other.mask).sum() for other in guessed]
        assert max(overlaps) > 0.95
    with pytest.raises(RuntimeError, match=r"3 images, 1 failed") as caught:
        mine.segserve(
            "predict", "found", str(photos), "-r", "--url", mine.url,
            "-o", str(tmp_path / "overlays"), "--masks", str(tmp_path / "masks"), "--coco", str(tmp_path / "coco.json"),
        )  # fmt: skip
    assert "more/broken.jpg: image is not" in str(caught.value)
    assert {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "overlays").rglob("*.png")} == {
        "overlays/a.png",
        "overlays/more/b.png",
    }
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == 48
    with Image.open(tmp_path / "masks/more/b-001-class-0.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, next(iter(guessed)).mask)
