"""`segserve calibrate` fits a temperature on the coins, and says what is wrong with a labelled set."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from segserve_platform.cli.calibrating import calibrate
from segserve_platform.cli.errors import CommandError

if TYPE_CHECKING:
    from click.testing import Result

COINS = Path(__file__).parents[3] / "examples" / "coins"
MODELS = COINS / "model.yaml"

app = typer.Typer()
app.command()(calibrate)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """The photograph of the coins, and where it shows coin."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    (images / "coins.png").write_bytes((COINS / "coins.png").read_bytes())
    truth = np.asarray(Image.open(COINS / "truth.png"))
    Image.fromarray((truth > 0).astype(np.uint8)).save(labels / "coins.png")
    return images, labels


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def error(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, CommandError)
    return str(result.exception)


def numbers(output: str, word: str) -> list[float]:
    line = next(line for line in output.splitlines() if line.startswith(word))
    return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", line)]


def test_the_coins_get_a_temperature_that_is_no_worse(labelled: tuple[Path, Path]) -> None:
    result = run(*labelled, "-f", MODELS, "--pixels", 200_000)

    assert result.exit_code == 0, result.output
    assert f"coins: {303 * 384} pixels of 1 images" in result.output
    before, after = numbers(result.output, "before"), numbers(result.output, "after")
    assert before[0] == 1
    assert after[1] <= before[1]
    assert after[2] <= before[2] + 0.001
    assert f"- calibrate: {{temperature: {after[0]:.4g}}}" in result.output


def test_ignored_pixels_do_not_count(labelled: tuple[Path, Path]) -> None:
    label = labelled[1] / "coins.png"
    pixels = np.asarray(Image.open(label)).copy()
    pixels[:100] = 255
    Image.fromarray(pixels).save(label)

    assert "coins: 77952 pixels" in run(*labelled, "-f", MODELS, "--ignore", 255, "--pixels", 200_000).output
    assert "has the label 255; allowed: 0 to 1, and the label of --ignore" in error(*labelled, "-f", MODELS)


def test_a_missing_label_is_named(labelled: tuple[Path, Path]) -> None:
    (labelled[1] / "coins.png").rename(labelled[1] / "other.png")

    assert error(*labelled, "-f", MODELS).endswith("lacks coins.png: every image needs a label map")


def test_images_that_would_share_a_label_are_named(labelled: tuple[Path, Path]) -> None:
    (labelled[0] / "coins.tif").write_bytes((COINS / "coins.png").read_bytes())

    assert error(*labelled, "-f", MODELS) == "several images would share a label map: coins; rename them"


def test_a_label_of_another_size_is_named(labelled: tuple[Path, Path]) -> None:
    Image.new("L", (10, 20)).save(labelled[1] / "coins.png")

    assert "coins.png has 20 x 10 pixels, coins.png has 303 x 384" in error(*labelled, "-f", MODELS)


def test_a_label_in_colours_is_refused(labelled: tuple[Path, Path]) -> None:
    Image.new("RGB", (384, 303)).save(labelled[1] / "coins.png")

    assert "has mode RGB; a label map has one channel" in error(*labelled, "-f", MODELS)


def test_a_label_that_is_no_image_is_refused(labelled: tuple[Path, Path]) -> None:
    (labelled[1] / "coins.png").write_bytes(b"none")

    assert "is not a label map" in error(*labelled, "-f", MODELS)


def test_folders_without_images_are_refused(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "has no images; looked for *.jpeg, *.jpg, *.png" in error(tmp_path / "empty", labelled[1], "-f", MODELS)
    assert error(tmp_path / "nowhere", labelled[1], "-f", MODELS).endswith("nowhere is not a folder")


@pytest.mark.parametrize(
    ("model", "says"), [("coins-instances", "only such a model can be calibrated"), ("dogs", "no model 'dogs' in")]
)
def test_only_semantic_models_can_be_calibrated(labelled: tuple[Path, Path], model: str, says: str) -> None:
    assert says in error(*labelled, "-f", MODELS, "--model", model)


def test_onnxruntime_is_asked_for_where_it_is_missing(
    labelled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    assert "pip install onnxruntime" in error(*labelled, "-f", MODELS)
