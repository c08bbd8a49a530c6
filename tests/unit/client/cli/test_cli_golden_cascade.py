"""`segserve golden cascade`: the threshold for a declared loss, found by running both networks on golden images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from bench.coins import variant, write
from fakes.docs import ROOT
from segserve_builder.golden.judging import GOLDEN_FILE, record
from segserve_builder.sources import folder_digest
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel

from .conftest import Command

COINS = ROOT / "examples/coins"
IMAGES = 5


def golden_set(folder: Path, model: dict[str, Any]) -> None:
    """Make parts of the photograph the model's golden set, with its own answers as the expected ones."""
    folder.mkdir()
    network = InProcessModel(SegmentationModel.model_validate(model).pipeline, COINS / "coins-unet.onnx")
    cases = []
    with Image.open(COINS / "coins.png") as photo:
        for number in range(IMAGES):
            path = folder / f"{number}.png"
            photo.crop((60 * number, 0, 60 * number + 80, 80)).save(path)
            cases.append(record(network.answer(path.read_bytes(), RequestOptions(encoding="rle")), path.name))
    (folder / GOLDEN_FILE).write_text(json.dumps({"cases": cases}))
    model["spec"]["golden"] = {"uri": folder.as_uri(), "sha256": folder_digest(folder)}


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coins' network, and the same asked for coins that it is surer of as the light one."""
    folder, model = tmp_path_factory.mktemp("tiers"), variant()
    golden_set(folder / "golden", model)
    light = variant(name="light", postprocess=[{"argmax": {"threshold": 0.95}}])
    model["spec"]["cascade"] = {"light": {"model": "light"}, "when": "confidence", "threshold": 0}
    return write(folder / "model.yaml", model, light)


def test_the_threshold_is_printed_as_a_spec_takes_it(command: Command, tiers: Path) -> None:
    code, printed, _ = command("golden", "cascade", "-f", tiers, "--max-loss", "0.4")

    found = re.search(r"set in spec.cascade: threshold: (\S+), maxLoss: 0.4", printed)
    assert (code, f"coins: {IMAGES} images" in printed) == (0, True)
    assert found is not None
    model, light = yaml.safe_load_all(tiers.read_text())
    model["spec"]["cascade"] |= {"threshold": float(found[1]), "maxLoss": 0.4}
    resource, _ = load(yaml.safe_dump_all([model, light]), "model.yaml")
    assert resource.spec.cascade.max_loss == 0.4


def test_too_few_golden_images_are_refused_with_how_many_are_needed(command: Command, tiers: Path) -> None:
    code, _, complaint = command("golden", "cascade", "-f", tiers)

    assert code == 1
    assert f"a loss of at most 0.01 needs at least 99 images, got {IMAGES}" in " ".join(complaint.split())


def test_a_model_without_a_cascade_is_refused(command: Command) -> None:
    code, _, complaint = command("golden", "cascade", "-f", COINS / "model.yaml", "--model", "coins")

    assert code == 1
    assert "coins has no spec.cascade" in " ".join(complaint.split())
