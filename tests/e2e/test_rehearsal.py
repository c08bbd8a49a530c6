"""A rehearsal on the real parts: its verdict is that of the same change live (test_rollouts.py), and the harmed count.

The platform is the command's own; only its servers are those of a platform that can be made to misbehave.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from faults.plan import Fault
from faults.rehearsal import rehearse
from faults.scenarios import PROOF, same_network

pytestmark = pytest.mark.platform

POLICY = {
    "steps": [{"weight": 50}],
    "bakeTime": "8s",
    "maxBadRequests": 500,
    "gates": [{"gate": "errorRate"}],
}


def left_over() -> list[Path]:
    """Return the folders of rehearsals in the usual place."""
    return list(Path(tempfile.gettempdir()).glob("segserve-rehearsal-*"))


def test_a_good_revision_is_promoted_and_one_that_fails_is_rolled_back_with_its_harmed_counted(tmp_path: Path) -> None:
    change = same_network(POLICY, tmp_path)
    for version in (change.first, change.second):
        # How long answers take is the machine's matter: harmed is who gets an error.
        version["spec"]["slo"] = {"errorPercent": 1}
    options = ("--rate", 2, "--speed", 4, "--lead", "1s")
    before = left_over()

    good, well = rehearse(change, Fault(), tmp_path / "good", *options)
    bad, ill = rehearse(change, Fault(errors=1.0, after=PROOF), tmp_path / "bad", *options)

    assert (good, well["verdict"], well["harmed"]) == (0, "promoted", 0)
    assert well["revisions"][1]["requests"] > 0
    assert (bad, ill["verdict"]) == (3, "rolledBack")
    assert ill["decisions"][-1]["phase"] == "RolledBack"
    assert ill["harmed"] == ill["revisions"][1]["failed"] > 0
    assert left_over() == before
