"""What is left on the machine is seen, and what others do there is not taken for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from machine_state import MachineState, differences, main, snapshot
from segserve_operator.adapters.local.files import STATE_VARIABLE
from suite_run import RUN_VARIABLE

WAITS = [sys.executable, "-c", "import sys; print('runs', flush=True); sys.stdin.read()"]


def left_in(folder: Path, before: MachineState) -> list[str]:
    """Return the lines of what is in a folder: other users have temporary files elsewhere."""
    return [line for line in differences(before, snapshot("temporary file")) if str(folder) in line]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that no other test writes to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def children() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(children: ExitStack, **environment: str) -> psutil.Process:
    """Start a process that waits, with something added to its environment."""
    child = children.enter_context(
        subprocess.Popen(WAITS, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    assert child.stdin is not None
    assert child.stdout is not None
    children.callback(child.stdin.close)
    assert child.stdout.readline() == b"runs\n"
    return psutil.Process(child.pid)


def test_a_machine_that_was_left_alone_does_not_differ_in_what_it_is() -> None:
    # The other kinds may change while other tests of this run go on.
    before = snapshot("host name", "sysctl")

    assert differences(before, snapshot("host name", "sysctl")) == []


def test_what_cannot_be_read_is_said_and_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MachineState({"rule of iptables": {"filter: -A INPUT -j DROP": ""}}, {})
    monkeypatch.setattr("machine_state.shutil.which", lambda *_, **__: None)

    after = snapshot("rule of iptables")

    assert after == MachineState({}, {"rule of iptables": "iptables-save is not installed"})
    assert differences(before, after) == []


def test_a_temporary_file_is_new_until_it_is_removed(temporary: Path) -> None:
    before = snapshot("temporary file")
    path = temporary / "segserve-helm-01234567"

    path.mkdir()
    assert left_in(temporary, before) == [f"new temporary file: {path}"]
    path.rmdir()
    assert left_in(temporary, before) == []


def test_a_temporary_file_by_a_name_that_is_none_of_ours_is_somebody_elses(temporary: Path) -> None:
    before = snapshot("temporary file")

    (temporary / "letter.txt").touch()

    assert left_in(temporary, before) == []


def test_the_folder_of_a_platform_that_runs_is_in_use(temporary: Path, children: ExitStack) -> None:
    before = snapshot("temporary file")
    state = temporary / "segserve-abc" / "state"
    state.mkdir(parents=True)

    platform = start(children, **{STATE_VARIABLE: str(state)})
    assert left_in(temporary, before) == []
    platform.kill()
    platform.wait()
    assert left_in(temporary, before) == [f"new temporary file: {state.parent}"]


def test_shared_memory_that_nobody_holds_is_new_until_it_is_removed() -> None:
    before = snapshot("shared memory")
    path = Path("/dev/shm") / f"segtest-leftover-{uuid.uuid4().hex}"

    path.touch()
    try:
        assert f"new shared memory: {path.name}" in differences(before, snapshot("shared memory"))
    finally:
        path.unlink()
    assert not [line for line in differences(before, snapshot("shared memory")) if path.name in line]


def test_a_process_of_a_run_that_has_ended_is_left(children: ExitStack) -> None:
    before = snapshot("process")

    left = start(children, **{RUN_VARIABLE: "/nowhere/segserve-tests-ended.json"})

    found = [line for line in differences(before, snapshot("process")) if str(left.pid) in line]
    assert len(found) == 1
    assert found[0].startswith(f"new process: {left.pid} {sys.executable} -c")


def test_a_process_of_a_run_that_goes_on_is_not_left(children: ExitStack) -> None:
    before = snapshot("process")

    running = start(children)

    assert running.environ()[RUN_VARIABLE] == os.environ[RUN_VARIABLE]
    assert [line for line in differences(before, snapshot("process")) if str(running.pid) in line] == []


CHANGES = {
    "a host name": ("host name", {"name": "a"}, {"name": "b"}, ["host name has changed: name was 'a', is 'b'"]),
    "a sysctl": ("sysctl", {"x": "1"}, {"x": "2"}, ["sysctl has changed: x was '1', is '2'"]),
    "a sysctl of a module that was loaded": ("sysctl", {}, {"x": "2"}, []),
    "a new link": ("link", {}, {"kt0": ""}, ["new link: kt0"]),
    "a link that is gone": ("link", {"kt0": ""}, {}, ["link is gone: kt0"]),
    "a process that has ended": ("process", {"1": "x"}, {}, []),
}


@pytest.mark.parametrize(("kind", "before", "after", "lines"), CHANGES.values(), ids=CHANGES)
def test_each_kind_of_change_has_its_line(
    kind: str, before: dict[str, str], after: dict[str, str], lines: list[str]
) -> None:
    assert differences(MachineState({kind: before}, {}), MachineState({kind: after}, {})) == lines


def test_the_command_says_each_difference_and_fails(
    temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machine_state._ENDING_S", 0.0)
    file = tmp_path / "state.json"
    assert main(["save", str(file)]) == 0
    assert "temporary file" in json.loads(file.read_text())["seen"]

    (temporary / "segserve-left").touch()

    assert main(["compare", str(file)]) == 1
    assert f"new temporary file: {temporary}/segserve-left" in capsys.readouterr().out.splitlines()


def test_a_command_that_is_misspelt_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["safe", "x"]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_link_is_new_until_it_is_removed() -> None:
    before = snapshot("link")
    subprocess.run(["ip", "link", "add", "kttest0", "type", "veth", "peer", "name", "kttest1"], check=True)
    try:
        found = differences(before, snapshot("link"))
    finally:
        subprocess.run(["ip", "link", "del", "kttest0"], check=True)

    assert found == ["new link: kttest0", "new link: kttest1"]
    assert differences(before, snapshot("link")) == []
