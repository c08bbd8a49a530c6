"""Child processes are identified, observed and ended, whichever process started them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fakes.waiting import until
from segserve_operator.adapters.local import processes

SLEEPER = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {SLEEPER}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEPER}']).wait()"


@pytest.fixture
def launch(tmp_path: Path):
    def start(code: str, variables: Mapping[str, str] | None = None) -> processes.ProcessRecord:
        return processes.start(
            [sys.executable, "-c", code],
            record=tmp_path / "it.process.json",
            log=tmp_path / "it.log",
            environment={**os.environ, **(variables or {})},
            state=tmp_path,
        )

    yield start
    processes.end_marked_processes(tmp_path, grace_s=1)


def test_a_recorded_process_is_identified_by_its_record(launch, tmp_path: Path) -> None:
    started = launch(SLEEPER)

    assert processes.read_record(tmp_path / "it.process.json") == started
    assert processes.is_alive(started)


def test_options_in_the_environment_are_arguments_that_others_and_children_do_not_see(launch, tmp_path: Path) -> None:
    words = {"--first": "one word=1", "--second": "another word"}
    children = (
        "import os, sys, time; os.spawnlp(os.P_WAIT, 'env', 'env'); print(sys.argv[1:], flush=True); time.sleep(60)"
    )

    started = launch(children, words)

    log = tmp_path / "it.log"
    until(lambda: "['--first=one word=1', '--second=another word']" in log.read_text(), "the arguments")
    assert log.read_text().count("word=1") == 1
    assert b"word" not in Path(f"/proc/{started.pid}/cmdline").read_bytes()


WIDENING = """
import os
file = os.open(NAME, os.O_CREAT | os.O_RDWR, 0o666)
try:
    os.fchmod(file, 0o644)  # as Boost does with each region of shared memory
except PermissionError:
    print(NAME, "is refused", flush=True)
"""


def test_what_a_process_with_hidden_arguments_and_its_children_make_is_read_by_nobody_else(
    launch, tmp_path: Path
) -> None:
    child = f"NAME = 'of a child'{WIDENING}"
    code = (
        f"NAME = 'of the process'{WIDENING}\nimport subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    )

    launch(code, {"--first": "word"})

    for name in ("of the process", "of a child"):
        until(lambda name=name: f"{name} is refused" in (tmp_path / "it.log").read_text(), "the mode is kept")
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_program_that_cannot_have_hidden_arguments_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(processes.VisibleArgumentsError, match="ptrace"):
        processes.start(
            [str(tmp_path / "missing")],
            record=tmp_path / "it.process.json",
            log=tmp_path / "it.log",
            environment={"--first": "word"},
            state=tmp_path,
        )

    assert not (tmp_path / "it.process.json").exists()


def test_a_reused_id_is_not_mistaken_for_the_process() -> None:
    own = processes.current_process()

    assert processes.is_alive(own)
    assert not processes.is_alive(replace(own, start_ticks=own.start_ticks - 1))
    assert not processes.is_alive(replace(own, boot_id="another"))


def test_a_process_is_still_known_once_the_clock_of_the_machine_is_set(launch, monkeypatch: pytest.MonkeyPatch) -> None:
    started = launch(SLEEPER)
    # Linux tells the start of a process since the boot, and the boot by the clock as it is set now.
    later_s = psutil.boot_time() + 3600
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: later_s)

    assert processes.is_alive(started)


def test_a_record_tells_when_its_process_started(launch) -> None:
    started = launch(SLEEPER)

    assert started.started_at_s == pytest.approx(psutil.Process(started.pid).create_time(), abs=2)  # a boot's seconds


def test_an_ended_process_is_not_alive_and_leaves_no_zombie(launch) -> None:
    started = launch("pass")

    until(lambda: not processes.is_alive(started), "it has ended")
    until(lambda: not psutil.pid_exists(started.pid), "no zombie is left")


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(launch, tmp_path: Path) -> None:
    started = launch(STUBBORN)
    until(lambda: "up" in (tmp_path / "it.log").read_text(), "it runs")

    processes.end(started, grace_s=0.2)

    assert not processes.is_alive(started)


def test_descendants_end_with_their_ancestor(launch) -> None:
    started = launch(PARENT)
    until(lambda: psutil.Process(started.pid).children(), "it has started a process")
    (child,) = psutil.Process(started.pid).children()

    processes.end(started, grace_s=2)

    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child has ended")


def test_unrecorded_processes_are_ended_by_their_mark(launch, tmp_path: Path) -> None:
    started = launch(PARENT)
    until(lambda: psutil.Process(started.pid).children(), "it has started a process")
    (tmp_path / "it.process.json").unlink()

    assert processes.end_marked_processes(tmp_path, grace_s=2) == 2
    assert not processes.is_alive(started)


@pytest.mark.parametrize("content", ["", "{}", "null", '{"pid": 1}'])
def test_a_damaged_record_counts_as_missing(tmp_path: Path, content: str) -> None:
    (tmp_path / "it.process.json").write_text(content)

    assert processes.read_record(tmp_path / "it.process.json") is None
