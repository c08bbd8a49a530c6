"""What test runs that have ended left on the machine is found, and nothing of others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from machine_state import leftovers, main
from suite_run import RUN_VARIABLE, SHM, SHM_PREFIX

WAITS = [sys.executable, "-c", "import sys; print('runs', flush=True); sys.stdin.read()"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that no other run writes to, and no cluster."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("machine_state.CLUSTER", tmp_path / "cluster")
    return tmp_path


@pytest.mark.parametrize(("mark", "is_left"), [("/nowhere/segserve-tests-ended.json", True), (None, False)])
def test_a_process_is_left_if_its_run_has_ended(mark: str | None, is_left: bool) -> None:
    environment = os.environ if mark is None else os.environ | {RUN_VARIABLE: mark}
    with subprocess.Popen(WAITS, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = [line for line in leftovers() if line.startswith(f"process {child.pid}: {sys.executable}")]
        child.communicate()

    assert bool(found) == is_left


def test_shared_memory_that_nobody_holds_is_left() -> None:
    path = SHM / f"{SHM_PREFIX}ended-{uuid.uuid4().hex}"

    path.touch()
    try:
        assert f"shared memory {path}" in leftovers()
    finally:
        path.unlink()


def test_the_folder_of_a_run_that_has_ended_is_left_and_no_other(temporary: Path) -> None:
    for name in ("segserve-tests-01234567", "somebody-elses"):
        (temporary / name).mkdir()

    assert [line for line in leftovers() if str(temporary) in line] == [f"folder {temporary}/segserve-tests-01234567"]


def test_a_cluster_whose_run_has_ended_is_left(temporary: Path) -> None:
    (temporary / "cluster").mkdir()
    (temporary / "cluster/test-run").write_text("/nowhere/segserve-tests-ended.json")

    assert f"cluster in {temporary}/cluster" in leftovers()


def test_a_cluster_that_somebody_started_by_hand_is_not(temporary: Path) -> None:
    (temporary / "cluster").mkdir()

    assert [line for line in leftovers() if "cluster" in line] == []


def test_the_command_prints_what_is_left_and_fails(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (temporary / "segserve-tests-01234567").mkdir()

    assert main() == 1
    assert f"folder {temporary}/segserve-tests-01234567" in capsys.readouterr().out.splitlines()
