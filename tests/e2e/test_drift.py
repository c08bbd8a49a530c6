"""Drift from each kind of reference on the real Triton: golden images, a file, and one that stands in the spec."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

from bench.coins import variant, write
from bench.platform import MODELS, Running
from fakes.callers import SteadyCaller
from fakes.waiting import meanwhile, until
from segserve import Client, Local
from segserve.cli.app import app
from segserve_builder import sources
from segserve_builder.golden.judging import load

pytestmark = pytest.mark.platform

NAME = "watched"
IMAGES = 40
PATIENCE_S = 300.0


def golden_set(folder: Path) -> dict[str, str]:
    """Write a golden set that has the example's photograph many times."""
    folder.mkdir()
    case = json.loads(
        load(MODELS.parent / "golden/semantic").cases[0].model_dump_json(by_alias=True, exclude_none=True)
    )
    (folder / case["image"]).write_bytes((MODELS.parent / "golden/semantic" / case["image"]).read_bytes())
    (folder / "golden.json").write_text(json.dumps({"cases": [case] * IMAGES}))
    return {"uri": folder.as_uri(), "sha256": sources.folder_digest(folder)}


def watching(golden_images: dict[str, str], **reference: Any) -> dict[str, Any]:
    """Return the coins with a reference of drift; windows of seconds are for a test alone."""
    drift = {"window": "5s", "minAnswers": 10, "falseAlarmsPerMonth": 30, "reference": reference}
    return variant(name=NAME, golden=golden_images, drift=drift)


def drifting(client: Client) -> tuple[str, str, str]:
    """Return status, reason and message of the condition."""
    conditions = client.models.get(NAME).status.conditions
    return next(((each.status, each.reason, each.message) for each in conditions if each.type == "Drifting"), ("",) * 3)


def becomes(client: Client, status: str, words: str) -> None:
    def reached() -> bool:
        seen, _, message = drifting(client)
        return seen == status and words in message

    until(reached, f"Drifting is {status} with {words!r}, it was {drifting(client)}", within_s=PATIENCE_S)


def test_darker_images_are_found_by_golden_images_a_file_and_a_recorded_reference(
    serve: Callable[..., Running], tmp_path: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = golden_set(tmp_path / "golden")
    running = serve(write(tmp_path / "model.yaml", watching(golden, golden={})))
    monkeypatch.setenv("SEGSERVE_STATE", str(running.state))
    written = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(photo)).convert("RGB")).enhance(0.3).save(written, "PNG")
    dark = written.getvalue()

    with Client(running.url, platform=Local(running.state)) as client:
        caller = SteadyCaller(running.url, (NAME,), photo, pause_s=0.05)
        with meanwhile(caller.call):
            becomes(client, "False", f"the reference of {IMAGES} golden images")
            exported = {}
            for name in ("reference.json", "reference.yaml"):
                done = CliRunner().invoke(app, ["drift", "export", NAME, "--local", "-o", str(tmp_path / name)])
                assert done.exit_code == 0, done.output
                exported[name] = done.output
            digest = exported["reference.json"].rpartition("sha256: ")[2].strip(" }\n")
            caller.image = dark
            becomes(client, "True", "brightness: PSI")

            caller.image = photo
            client.models.apply(
                watching(golden, file={"uri": (tmp_path / "reference.json").as_uri(), "sha256": digest})
            )
            becomes(client, "False", "the reference in file:")
            caller.image = dark
            becomes(client, "True", "brightness: PSI")

            caller.image = photo
            patch = yaml.safe_load((tmp_path / "reference.yaml").read_text())
            client.models.apply(watching(golden, **patch["spec"]["drift"]["reference"]))
            becomes(client, "False", "the recorded reference")
            caller.image = dark
            becomes(client, "True", "brightness: PSI")
