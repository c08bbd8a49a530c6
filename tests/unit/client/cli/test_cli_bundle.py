"""`segserve rollout bundle` on both platforms: what is fetched is what was kept."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from fakes import sheets
from fakes.kube_http import FakeServer
from segserve.cli.errors import CommandError
from segserve.cli.rollout.bundle_sheet import with_sheet
from segserve.cli.rollout.commands import fetch_bundle
from segserve.platforms.errors import ControlError
from segserve.platforms.local import LocalPlatform
from segserve.platforms.port import Json, Platform
from segserve_builder.comparator.sheet import Sheet
from segserve_common.kserve import Tensor
from segserve_common.kube.names import BUNDLE_KEY, bundle_name
from segserve_operator.adapters.bundles.archive import packed, unpacked
from segserve_operator.adapters.bundles.local import bundle_file
from segserve_operator.adapters.local.files import STATE_VARIABLE, StateFolder

from .conftest import MODELS, Command

CONTENT = b"\x1f\x8b bundle"
ROLLOUT = "coins-abc-00000001"


def model(name: str, rollout: str | None) -> Json:
    status = {"rollout": {"name": rollout}} if rollout else {}
    return {"metadata": {"name": name, "generation": 1}, "spec": {}, "status": status}


@pytest.fixture
def cluster(server: FakeServer) -> Platform:
    server.put(MODELS, model("coins", ROLLOUT), model("cells", "cells-1"), model("new", None))
    kept = {"metadata": {"name": bundle_name(ROLLOUT)}, "binaryData": {BUNDLE_KEY: base64.b64encode(CONTENT).decode()}}
    server.put("api/v1/configmaps", kept)
    return server.platform()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    path = bundle_file(StateFolder(tmp_path / "state"), ROLLOUT)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return LocalPlatform()


@pytest.mark.parametrize("name", [ROLLOUT, "coins"])
def test_on_a_cluster_a_bundle_is_found_by_its_rollout_or_as_the_latest_of_a_model(
    name: str, cluster: Platform
) -> None:
    assert fetch_bundle(cluster, name) == (ROLLOUT, CONTENT)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cells", "no bundle of rollout 'cells-1'"),
        ("new", "new has had no rollout yet"),
        ("unknown", "'unknown'"),
    ],
)
def test_where_there_is_no_bundle_the_error_says_why(name: str, text: str, cluster: Platform) -> None:
    with pytest.raises((CommandError, ControlError), match=text):
        fetch_bundle(cluster, name)


def test_here_a_bundle_is_read_from_the_state_folder(here: Platform) -> None:
    assert fetch_bundle(here, ROLLOUT) == (ROLLOUT, CONTENT)


def test_the_command_writes_the_file_that_is_named(here: Platform, command: Command, tmp_path: Path) -> None:
    code, out, _ = command("rollout", "bundle", ROLLOUT, "-o", tmp_path / "why.tar.gz")
    assert (code, (tmp_path / "why.tar.gz").read_bytes()) == (0, CONTENT)
    assert ROLLOUT in out


def test_a_file_that_cannot_be_written_is_one_line(here: Platform, command: Command, tmp_path: Path) -> None:
    code, _, error = command("rollout", "bundle", ROLLOUT, "-o", tmp_path / "no/such/folder.tar.gz")
    assert (code, error.count("\n")) == (1, 1)
    assert "cannot be written" in error


class Compared:
    """A platform whose model had its latest rollout in Shadow."""

    def __init__(self, told: Sheet | None, latest: str = ROLLOUT) -> None:
        self._told, self._latest = told, latest

    def rollout(self, name: str) -> Json:
        return {"metadata": {"name": name}, "spec": {"model": "coins"}}

    def model(self, name: str) -> Json:
        return model(name, self._latest)

    def sheet(self, _: str) -> bytes | None:
        return None if self._told is None else self._told.model_dump_json().encode()


SHEET = sheets.sheet(
    sheets.pair(
        Tensor.of_items("IMAGE", [sheets.photo()]), sheets.labels("1", (40, 60, 25)), sheets.labels("2", (90, 60, 25))
    )
)


def test_a_bundle_has_the_figures_of_the_sheet_and_no_image_unless_asked_for() -> None:
    stored = packed({"record.json": b"{}"})
    bare, said = with_sheet(Compared(SHEET), ROLLOUT, stored, with_images=False)  # type: ignore[arg-type]
    whole, _ = with_sheet(Compared(SHEET), ROLLOUT, stored, with_images=True)  # type: ignore[arg-type]

    (pair,) = json.loads(unpacked(bare)["sheet.json"])["pairs"]
    assert set(unpacked(bare)) == {"record.json", "sheet.json"}
    assert pair["agreement"] == SHEET.pairs[0].agreement
    assert not {"image", "stable", "candidate"} & pair.keys()
    assert "1 of 212 pairs, without images: --with-images adds them" in said
    assert set(unpacked(whole)) - set(unpacked(bare)) == {"sheet/index.html", "sheet/pair-1.png"}


@pytest.mark.parametrize(
    ("platform", "why"),
    [
        pytest.param(Compared(None), "no sheet of coins", id="nothing is kept any more"),
        pytest.param(Compared(SHEET, "coins-abc-00000002"), "only the latest rollout", id="another one came since"),
    ],
)
def test_a_bundle_without_a_sheet_is_as_it_was_and_says_why(platform: Compared, why: str) -> None:
    assert with_sheet(platform, ROLLOUT, CONTENT, with_images=False)[0] == CONTENT  # type: ignore[arg-type]
    with pytest.raises(CommandError, match=why):
        with_sheet(platform, ROLLOUT, CONTENT, with_images=True)  # type: ignore[arg-type]
