"""Rehearsals by the command itself, on servers that can be made to misbehave."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from bench.coins import write
from faults.plan import Fault, Plan
from faults.platform import launch, revision_of
from faults.scenarios import Change
from segserve.cli import lifecycle
from segserve.cli.app import main
from segserve_operator.adapters.local.files import StateFolder


def rehearse(change: Change, fault: Fault, folder: Path, *options: object) -> tuple[int, dict[str, Any]]:
    """Rehearse a change whose candidate has a fault, with its pictures; return exit code and report.

    `folder` takes the files of the models and pictures; `options` are those of `segserve rollout rehearse`.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    for number, picture in enumerate(change.pictures):
        (images / f"{number:03}.png").write_bytes(picture)
    new, old = write(folder / "new.yaml", change.second), write(folder / "old.yaml", change.first)

    def launch_faulty(state: StateFolder, speed: float) -> None:
        plan = Plan(state.root / "faults.json")
        plan.set(**{revision_of(change.second): fault})
        launch(state.root, plan, speed)

    command = ["segserve", "rollout", "rehearse", "-f", new, "--stable", old, "--traffic", images, "-o", "json"]
    argv = [str(word) for word in (*command, *options)]
    shown = io.StringIO()
    with (
        mock.patch.object(lifecycle, "launch", launch_faulty),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(shown),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert shown.getvalue(), f"no report, exit code {code}"
    return code, json.loads(shown.getvalue())
