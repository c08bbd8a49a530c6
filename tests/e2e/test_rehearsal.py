"""A rehearsal on the real parts: its verdict is that of the same change live (test_rollouts.py), and the harmed count.

The platform is the command's own; only its servers are those of a platform that can be made to misbehave.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.coins import write
from faults.plan import Fault, Plan
from faults.platform import launch, revision_of
from faults.scenarios import PROOF, same_network
from segserve.cli import lifecycle
from segserve.cli.app import main
from segserve_operator.adapters.local.files import StateFolder

pytestmark = [pytest.mark.platform, pytest.mark.timeout(300)]

POLICY = {
    "steps": [{"weight": 50}],
    "bakeTime": "8s",
    "maxBadRequests": 500,
    "gates": [{"gate": "errorRate"}],
}
Rehearse = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def rehearse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Rehearse:
    """Rehearse a change of the coins whose candidate has a fault, and return exit code and report."""
    change = same_network(POLICY, tmp_path)
    for version in (change.first, change.second):
        # How long answers take is the machine's matter: harmed is who gets an error.
        version["spec"]["slo"] = {"errorPercent": 1}
    images = tmp_path / "images"
    images.mkdir()
    for number, picture in enumerate(change.pictures):
        (images / f"{number:03}.png").write_bytes(picture)
    new, old = write(tmp_path / "new.yaml", change.second), write(tmp_path / "old.yaml", change.first)

    def run(fault: Fault) -> tuple[int, dict[str, Any]]:
        def launch_faulty(state: StateFolder, speed: float) -> None:
            plan = Plan(state.root / "faults.json")
            plan.set(**{revision_of(change.second): fault})
            launch(state.root, plan, speed)

        monkeypatch.setattr(lifecycle, "launch", launch_faulty)
        arguments = ["--traffic", images, "--rate", 5, "--speed", 4, "--lead", "1s", "-o", "json"]
        command = ["segserve", "rollout", "rehearse", "-f", new, "--stable", old, *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out)

    return run


def left_over() -> list[Path]:
    """Return the folders of rehearsals in the usual place."""
    return list(Path(tempfile.gettempdir()).glob("segserve-rehearsal-*"))


def test_a_good_revision_is_promoted_and_one_that_fails_is_rolled_back_with_its_harmed_counted(
    rehearse: Rehearse,
) -> None:
    before = left_over()

    good, well = rehearse(Fault())
    bad, ill = rehearse(Fault(errors=1.0, after=PROOF))

    assert (good, well["verdict"], well["harmed"]) == (0, "promoted", 0)
    assert well["revisions"][1]["requests"] > 0
    assert (bad, ill["verdict"]) == (3, "rolledBack")
    assert ill["decisions"][-1]["phase"] == "RolledBack"
    assert ill["harmed"] == ill["revisions"][1]["failed"] > 0
    assert [side["failed"] for side in (*well["revisions"], ill["revisions"][0])] == [0, 0, 0]
    assert left_over() == before
