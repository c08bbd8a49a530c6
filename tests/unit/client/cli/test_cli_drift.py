"""`segserve drift export`: the reference that a model has counted, as a patch for its spec or another model's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.kube_http import FakeServer
from segserve.cli import drift as drift_module
from segserve_operator.api.drift import Drift, RecordedReference
from segserve_operator.core.drift.watch import DriftWatch, recorded_of

from .conftest import MODELS, Command, model

DRIFT = Drift.model_validate({"window": "1m", "reference": {"window": {"duration": "12m"}}})


def stored(minutes: int) -> str:
    """Return what a status has after so many minutes of images, half of them bright."""
    watch = DriftWatch.start("coins-1111111111", 0.0, DRIFT)
    for minute in range(minutes):
        counts = {"brightness": (50.0 * minute, 50.0 * minute)}
        watch = watch.measured({"server": counts}, DRIFT, 60.0 * minute)
    return watch.stored


@pytest.fixture
def coins(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model of a cluster, which watches for drift and has counted its reference."""
    monkeypatch.setattr(drift_module, "selected_platform", lambda _: server.platform())
    found: dict[str, Any] = model(drift=stored(20))
    found["spec"]["drift"] = DRIFT.to_dict()
    server.put(MODELS, found)
    return found


def test_what_is_printed_is_a_patch_whose_reference_is_the_counted_one(
    command: Command, coins: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "kept" / "reference.yaml"
    code, printed, _ = command("drift", "export", "coins")
    wrote, nothing, said = command("drift", "export", "coins", "-o", file)

    assert (code, wrote, nothing) == (0, 0, "")
    assert said == f"{file} written\n"
    assert file.read_text() == printed
    patch = yaml.safe_load(printed)
    assert (patch["kind"], patch["metadata"]) == ("SegmentationModel", {"name": "coins"})
    assert Drift.model_validate(patch["spec"]["drift"]).reference.recorded == recorded_of(coins["status"]["drift"])
    assert "shares: [0.5, 0.5]\n" in printed


def test_a_file_of_json_has_the_reference_alone_and_its_digest_is_told_for_the_spec(
    command: Command, coins: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "reference.json"

    code, printed, said = command("drift", "export", "coins", "-o", file)

    assert (code, printed) == (0, "")
    reference = RecordedReference.model_validate_json(file.read_text())
    assert reference == recorded_of(coins["status"]["drift"])
    spec = yaml.safe_load(f"{{{said.partition('spec.drift: ')[2]}}}")
    assert spec["reference"]["file"] == {
        "uri": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert spec["window"] == "1m"


@pytest.mark.parametrize(
    ("drift", "text", "complaint"),
    [
        (None, None, "coins has no spec.drift"),
        (DRIFT.to_dict(), None, "coins has counted nothing of its reference yet"),
        (DRIFT.to_dict(), stored(5), "the reference of coins-1111111111 is not complete"),
        (DRIFT.to_dict(), "what is this", "coins: "),
        ({"reference": {"recorded": {}}}, None, "its spec has a recorded one"),
        ({"reference": {"golden": {}}}, None, "coins has no reference of golden yet; the condition Drifting says why"),
    ],
)
def test_without_a_complete_reference_nothing_is_printed(
    command: Command, coins: dict[str, Any], drift: dict[str, Any] | None, text: str | None, complaint: str
) -> None:
    coins["spec"]["drift"], coins["status"]["drift"] = drift, text

    code, printed, said = command("drift", "export", "coins")

    assert (code, printed) == (1, "")
    assert complaint in said
