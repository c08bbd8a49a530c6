"""What a run of the tests leaves, ended or killed, is removed, and nothing of another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from segserve_common.process_record import ProcessRecord
from suite_run import RUN_VARIABLE, Run, begin, goes_on, remove

TESTS = Path(__file__).parents[1]
OWNER = """
import json, os, subprocess, sys
from pathlib import Path
from suite_run import RUN_VARIABLE, begin

run = begin()
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1], sys.argv[2]],
    env=os.environ | {RUN_VARIABLE: str(run.record)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    start_new_session=True,
)
child.stdout.readline()
Path(run.folder, "left").touch()
print(json.dumps({"folder": run.folder, "mark": str(run.record), "child": child.pid}), flush=True)
sys.stdin.read()
"""
# Deaf to the end of its input, as servers are.
CHILD = """
import mmap, signal, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
print("runs", flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Started:
    """A run of another process, with a child in a session of its own, a file and a region of shared memory."""

    owner: subprocess.Popen[bytes]
    mark: str
    folder: Path
    child: psutil.Process
    region: Path

    def kill(self) -> None:
        self.owner.kill()
        self.owner.wait()

    def left(self) -> list[str]:
        there = {
            "process": self.child.is_running() and self.child.status() != psutil.STATUS_ZOMBIE,
            "folder": self.folder.exists(),
            "region": self.region.exists(),
        }
        return [what for what, is_there in there.items() if is_there]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Started]]:
    """Start runs that have records of their own: those of the machine's other runs are not touched."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    with ExitStack() as stack:

        def run() -> Started:
            region = Path("/dev/shm") / f"segtest-run-{uuid.uuid4().hex}"
            region.write_bytes(bytes(8192))
            stack.callback(region.unlink, missing_ok=True)
            owner = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OWNER, CHILD, str(region)],
                    env=environment | {"PYTHONPATH": str(TESTS)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(owner.kill)
            assert owner.stdout is not None
            told = json.loads(owner.stdout.readline())
            child = psutil.Process(told["child"])
            stack.callback(kill, child)
            return Started(owner, told["mark"], Path(told["folder"]), child, region)

        yield run


def kill(process: psutil.Process) -> None:
    if process.is_running():
        process.kill()


def test_the_next_run_removes_what_a_killed_one_left(start: Callable[[], Started]) -> None:
    killed = start()
    assert goes_on(killed.mark)
    killed.kill()
    assert killed.left() == ["process", "folder", "region"]
    assert not goes_on(killed.mark)

    remove(begin())

    assert killed.left() == []


def test_a_run_that_goes_on_keeps_what_it_has(start: Callable[[], Started]) -> None:
    killed, going_on = start(), start()
    killed.kill()

    remove(begin())

    assert killed.left() == []
    assert going_on.left() == ["process", "folder", "region"]


def test_a_run_says_what_it_left(start: Callable[[], Started]) -> None:
    killed = start()
    killed.kill()
    record = Run(ProcessRecord(killed.owner.pid, 0, ""), "", str(killed.folder))

    left = remove(record)

    assert left[0].startswith(f"process {killed.child.pid}: {sys.executable} -c")
    assert left[1:] == [f"shared memory {killed.region}"]
    assert remove(record) == []


def test_the_tests_have_a_folder_for_temporary_files_that_goes_with_their_run() -> None:
    mark = os.environ[RUN_VARIABLE]

    assert goes_on(mark)
    assert f"{tempfile.gettempdir()}.json" == mark
