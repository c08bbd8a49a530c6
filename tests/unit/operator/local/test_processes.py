"""Child processes are identified, observed and ended, whichever process started them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from segserve_operator.adapters.local import processes

SLEEPER = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {SLEEPER}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEPER}']).wait()"


@pytest.fixture
def launch(tmp_path: Path):
    def start(code: str) -> processes.ProcessRecord:
        return processes.start(
            [sys.executable, "-c", code],
            record=tmp_path / "it.process.json",
            log=tmp_path / "it.log",
            environment=os.environ,
            state=tmp_path,
        )

    yield start
    processes.end_marked_processes(tmp_path, grace_s=1)


def eventually(claim) -> bool:
    deadline_s = time.monotonic() + 10
    while not claim() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return bool(claim())


def test_a_recorded_process_is_identified_by_its_record(launch, tmp_path: Path) -> None:
    started = launch(SLEEPER)

    assert processes.read_record(tmp_path / "it.process.json") == started
    assert processes.is_alive(started)


def test_a_reused_id_is_not_mistaken_for_the_process() -> None:
    own = processes.current_process()

    assert processes.is_alive(own)
    assert not processes.is_alive(processes.ProcessRecord(own.pid, own.create_time - 100))


def test_an_ended_process_is_not_alive_and_leaves_no_zombie(launch) -> None:
    started = launch("pass")

    assert eventually(lambda: not processes.is_alive(started))
    assert eventually(lambda: not psutil.pid_exists(started.pid))


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(launch, tmp_path: Path) -> None:
    started = launch(STUBBORN)
    assert eventually(lambda: "up" in (tmp_path / "it.log").read_text())

    processes.end(started, grace_s=0.2)

    assert not processes.is_alive(started)


def test_descendants_end_with_their_ancestor(launch) -> None:
    started = launch(PARENT)
    assert eventually(lambda: psutil.Process(started.pid).children())
    (child,) = psutil.Process(started.pid).children()

    processes.end(started, grace_s=2)

    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_unrecorded_processes_are_ended_by_their_mark(launch, tmp_path: Path) -> None:
    started = launch(PARENT)
    assert eventually(lambda: psutil.Process(started.pid).children())
    (tmp_path / "it.process.json").unlink()

    assert processes.end_marked_processes(tmp_path, grace_s=2) == 2
    assert not processes.is_alive(started)


@pytest.mark.parametrize("content", ["", "{}", "null", '{"pid": 1}'])
def test_a_damaged_record_counts_as_missing(tmp_path: Path, content: str) -> None:
    (tmp_path / "it.process.json").write_text(content)

    assert processes.read_record(tmp_path / "it.process.json") is None
