"""`segserve rollout bundle` on both platforms: what is fetched is what was kept."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from fakes.kube_http import FakeServer
from segserve.cli.errors import CommandError
from segserve.cli.rollout.commands import fetch_bundle
from segserve.platforms.errors import ControlError
from segserve.platforms.local import LocalPlatform
from segserve.platforms.port import Json, Platform
from segserve_common.kube.names import BUNDLE_KEY, bundle_name
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
