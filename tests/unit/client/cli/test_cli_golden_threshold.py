"""`segserve golden threshold`: the score that few usual images exceed, found by running the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fakes.docs import ROOT
from segserve_builder.spec.model_spec import OutOfDistributionPolicy
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.loading import load
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.cli.calibrating import loaded
from segserve_platform.platforms.manifests import read_files

from .conftest import Command

COINS = ROOT / "examples/coins"


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    """Four parts of the photograph of coins."""
    folder = tmp_path / "usual"
    folder.mkdir()
    with Image.open(COINS / "coins.png") as photo:
        for left in range(4):
            photo.crop((64 * left, 0, 64 * left + 96, 96)).save(folder / f"{left}.png")
    return folder


def test_the_threshold_is_printed_as_a_spec_takes_it(command: Command, usual: Path) -> None:
    arguments = ("golden", "threshold", usual, "-f", COINS / "model.yaml", "--model", "coins", "--score", "energy")
    code, printed, _ = command(*arguments, "--false-positive-rate", "0.25")

    found = re.search(r"add to spec: (outOfDistribution: .*)", printed)
    assert (code, "4 images with a score" in printed) == (0, True)
    assert found is not None
    manifest = (COINS / "model.yaml").read_text().split("---")[0] + f"  {found[1]}\n"
    (resource,) = load(manifest, "model.yaml")
    assert resource.to_dict()["spec"]["outOfDistribution"]["score"] == "energy"


def test_a_file_that_is_damaged_is_named(command: Command, usual: Path) -> None:
    (usual / "1.png").write_bytes((usual / "0.png").read_bytes()[:200])

    code, _, complaint = command("golden", "threshold", usual, "-f", COINS / "model.yaml", "--model", "coins")

    assert code == 1
    assert str(usual / "1.png") in complaint.replace("\n", "")


def test_the_image_that_sets_the_threshold_is_not_above_it(command: Command, usual: Path) -> None:
    arguments = ("golden", "threshold", usual, "-f", COINS / "model.yaml", "--model", "coins", "--score", "detail")
    _, printed, _ = command(*arguments, "--false-positive-rate", "0.25")
    resource = SegmentationModel.model_validate(read_files([COINS / "model.yaml"])[0].complete())
    policy = OutOfDistributionPolicy(score="detail", threshold=0.0)
    network = loaded(resource, resource.spec.pipeline("coins").model_copy(update={"out_of_distribution": policy}))

    found = re.search(r"threshold: (.*)}", printed)
    scores = [network.score(path.read_bytes()) for path in usual.iterdir()]
    assert found is not None
    assert float(found[1]) in scores


def test_numbers_that_are_nearly_zero_are_numbers_in_yaml(
    command: Command, usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InProcessModel, "score", lambda self, image: 1e-7)
    arguments = ("golden", "threshold", usual, "-f", COINS / "model.yaml", "--model", "coins")

    _, printed, _ = command(*arguments, "--false-positive-rate", "0.25")

    added = yaml.safe_load("\n".join(re.findall(r"add to spec: (.*)", printed)))
    assert added["outOfDistribution"]["threshold"] == 1e-7


def test_too_few_images_are_refused_with_the_number_that_is_needed(command: Command, usual: Path) -> None:
    code, _, complaint = command("golden", "threshold", usual, "-f", COINS / "model.yaml", "--model", "coins")

    assert code == 1
    assert "a false positive rate of 0.01 needs at least 99 images with a score, got 4, of 4 images" in complaint
