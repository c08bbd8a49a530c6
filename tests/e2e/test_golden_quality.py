"""On the real Triton and Envoy: agents score golden images against labels, probes ask, and what servers use is seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.coins import variant
from bench.platform import MODELS, Running
from segserve import Client, Local, NotServingError
from segserve_builder import sources
from segserve_builder.golden.judging import load
from segserve_builder.spec.model_spec import Golden

pytestmark = pytest.mark.platform

COINS = MODELS.parent
NAME = "scored"


def labelled_set(folder: Path) -> Golden:
    """Write the example's golden set with the photograph's label map."""
    folder.mkdir()
    case = json.loads(load(COINS / "golden/semantic").cases[0].model_dump_json(by_alias=True, exclude_none=True))
    truth = np.asarray(Image.open(COINS / "truth.png")) > 0
    Image.fromarray(truth.astype(np.uint8)).save(folder / "truth.png")
    (folder / "coins.png").write_bytes((COINS / "coins.png").read_bytes())
    (folder / "golden.json").write_text(json.dumps({"cases": [case | {"labelMap": "truth.png"}]}))
    return Golden(uri=folder.as_uri(), sha256=sources.folder_digest(folder))


@pytest.fixture
def client(coins: Running, tmp_path: Path) -> Iterator[Client]:
    """A client that has brought a model with a labelled golden set to the shared platform."""
    golden = labelled_set(tmp_path / "golden")
    with Client(coins.url, platform=Local(coins.state)) as client:
        client.models.apply(model(150, golden))
        client.models.wait(NAME)
        yield client
        client.models.delete(NAME)
        client.models.wait(NAME, for_="delete")


def model(min_area: int, golden: Golden, **gate: float) -> dict[str, Any]:
    """Return the coins with a golden set, and a rollout that depends on nothing else."""
    steps = [{"argmax": {}}, {"removeSmallRegions": {"minArea": min_area}}]
    gates = [{"gate": "goldenQuality", **gate}]
    policy = {"strategy": "blueGreen", "bakeTime": "1s", "gates": gates}
    told = {"uri": golden.uri, "sha256": golden.sha256}
    return variant(name=NAME, golden=told, rollout=policy, postprocess=steps)


def intersection_over_union(answer: Any, truth: Any) -> float:
    """Return the mean over both classes, pixel by pixel."""
    shares = [
        ((answer == number) & (truth == number)).sum() / ((answer == number) | (truth == number)).sum()
        for number in (0, 1)
    ]
    return float(np.mean(shares))


def test_agents_score_the_set_as_plain_numpy_does_and_an_equal_revision_is_promoted(
    client: Client, tmp_path: Path, photo: bytes
) -> None:
    client.models.apply(model(151, labelled_set(tmp_path / "again"), minIou=0.95))
    client.rollouts.wait(NAME)

    record = client.rollouts.list(NAME)[0]
    verdict = next(each for each in record.status.verdicts if each.gate == "goldenQuality")
    truth = np.asarray(Image.open(COINS / "truth.png")) > 0
    expected = intersection_over_union(client.segment(photo, model=NAME).labels, truth)
    assert verdict.outcome == "Pass"
    assert float(verdict.numbers["iou"]) == pytest.approx(expected, abs=1e-4)
    assert verdict.numbers["iou.stable"] == verdict.numbers["iou"]
    assert set(verdict.numbers) >= {"class.background", "class.coin", "recall"}
    assert "not labels" not in verdict.message


def test_a_revision_below_the_floor_is_rolled_back_before_its_first_request(
    client: Client, tmp_path: Path, photo: bytes
) -> None:
    stable = client.segment(photo, model=NAME).revision
    client.models.apply(model(151, labelled_set(tmp_path / "again"), minIou=0.999))

    with pytest.raises(NotServingError, match="BelowFloor"):
        client.rollouts.wait(NAME)
    assert client.segment(photo, model=NAME).revision == stable
