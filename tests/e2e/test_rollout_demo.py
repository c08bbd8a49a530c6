"""`make demo-rollout`: what is bad in the dark is stopped before any caller, what is good gets through."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.platform import ROOT

pytestmark = pytest.mark.platform


def test_the_demo_stops_the_bad_version_with_its_sheet_and_promotes_the_good_one(tmp_path: Path) -> None:
    script = ROOT / "examples/coins/rollout_demo.py"
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    bad, good = done.stdout.split("4. A good version comes.")
    assert "RolledBack: maskAgreement" in bad
    assert "Callers who had its answers: 0." in bad
    assert "Progressing" not in bad
    assert re.search(r"Succeeded: callers who had its answers: [1-9]", good)
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "pair-1.png").is_file()
    assert not list(Path(tempfile.gettempdir()).glob("segserve-demo-*"))
