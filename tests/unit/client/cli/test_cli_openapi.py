"""`segserve openapi` on this machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fakes.docs import ROOT

from .conftest import MODEL_FILE, Command

PROMPT = ROOT / "examples/prompt/model.yaml"


@pytest.fixture
def stored(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that is not up, with the models coins and cells."""
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SEGSERVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.onnx").write_bytes(b"net")
    for name in ("coins", "cells"):
        file = tmp_path / f"{name}.yaml"
        uri = (tmp_path / "net.onnx").as_uri()
        file.write_text(
            (MODEL_FILE % hashlib.sha256(b"net").hexdigest()).replace("coins", name).replace("file:///net.onnx", uri)
        )
        assert command("apply", "-f", file)[0] == 0


@pytest.mark.usefixtures("stored")
def test_the_document_has_each_model_or_those_that_are_named(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"

    code, printed, _ = command("openapi")
    written = command("openapi", "coins", "-o", path)

    coins, cells = (f"/v1/models/{name}:segment" for name in ("coins", "cells"))
    assert (code, written) == (0, (0, "", ""))
    assert {coins, cells} < json.loads(printed)["paths"].keys()
    alone = json.loads(path.read_text())["paths"]
    assert coins in alone
    assert cells not in alone
    assert alone[coins]["post"]["description"] == "Classes: 0 background, 1 coin."


@pytest.mark.usefixtures("stored")
def test_a_promptable_model_takes_prompts_and_no_scores(command: Command) -> None:
    assert command("apply", "-f", PROMPT)[0] == 0

    post = json.loads(command("openapi")[1])["paths"]["/v1/models/coins-prompt:segment"]["post"]

    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    named = {"encoding", "multimask", "picture", "point_labels", "points", "prompt_boxes"}
    assert {each["name"] for each in post["parameters"]} == named == form.keys() - {"image"}


@pytest.mark.usefixtures("stored")
def test_a_model_that_is_not_there_is_an_error(command: Command) -> None:
    code, printed, complaint = command("openapi", "nope")

    assert (code, printed) == (1, "")
    assert "nope" in complaint


def test_a_folder_is_no_file_for_the_document(command: Command, tmp_path: Path) -> None:
    assert command("openapi", "-o", tmp_path) == (1, "", f"error: -o names a file, got the folder {str(tmp_path)!r}\n")
