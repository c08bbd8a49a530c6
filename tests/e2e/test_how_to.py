"""Every script of docs/how-to, run as a reader would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.platform import ROOT, Running

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

SCRIPTS = sorted((ROOT / "docs/how-to").glob("*.py"))


def header(script: str, key: str) -> str:
    """Return the rest of the script's line `# key: ...` before its first cell."""
    found = re.search(rf"^# {key}: (.*)$", script.partition("# %%")[0], re.MULTILINE)
    return found[1] if found else ""


def environment(request: pytest.FixtureRequest, needs: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SEGSERVE_")}
    own["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), own["PATH"]))
    if needs == "no platform":
        return own
    assert needs == "", f"needs: is 'no platform' or left out, got {needs!r}"
    running: Running = request.getfixturevalue("coins")
    return own | {"SEGSERVE_URL": running.url, "SEGSERVE_STATE": str(running.state)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_how_to_runs_as_it_is_and_prints_and_writes_what_it_says(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = path.read_text()
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment(request, header(script, "needs")),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    shown = iter(done.stdout.splitlines())
    for line in re.findall(r"^ *# > (.*)$", script, re.MULTILINE):
        pattern = ".*".join(map(re.escape, line.split("...")))
        assert any(re.fullmatch(pattern, each.rstrip()) for each in shown), f"not printed: {line}\n{done.stdout}"
    assert sorted(header(script, "writes").split()) == sorted(
        each.name for each in tmp_path.iterdir() if each.name != "examples"
    )


def test_the_notebook_of_the_examples_runs_in_its_folder(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = ROOT / "examples/coins"
    shutil.copy(folder / "coins.png", tmp_path)
    cells = json.loads((folder / "coins.ipynb").read_text())["cells"]
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment(request, ""),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found, shares = done.stdout.splitlines()
    assert re.fullmatch(r"24 coins, the largest of \d+ pixels", found)
    assert all(0.1 < share < 0.6 for share in json.loads(shares))
