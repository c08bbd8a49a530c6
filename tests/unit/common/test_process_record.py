"""Records of processes: what they are read from, and whose they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve_common.process_record import ProcessRecord


@pytest.fixture
def own() -> ProcessRecord:
    return ProcessRecord.of(os.getpid())


def test_a_record_is_read_as_it_was_written(own: ProcessRecord) -> None:
    assert ProcessRecord.from_json(own.to_json()) == own
    assert own.is_present


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"pid": 1}', '{"pid": 4194305, "start_ticks": "x", "boot_id": ""}']
)
def test_what_is_no_record_of_a_process_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ProcessRecord.from_json(text)


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[int]:
    """A process whose name Linux cuts within a character, as it keeps 15 bytes."""
    program = tmp_path / ("a" * 14 + "\u00e4")
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        yield process.pid
        process.kill()


def test_a_process_has_a_record_whatever_its_name_is(cut: int) -> None:
    assert ProcessRecord.of(cut).is_present


def test_a_process_that_has_ended_and_was_not_waited_for_is_present_but_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = ProcessRecord.of(child.pid)
    assert record.is_running

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert (record.is_present, record.is_running) == (True, False)
    child.communicate()
    assert not record.is_running
