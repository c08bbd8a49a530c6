"""A worker has a time for its start, and another one for each question."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fakes.waiting import HANG_S
from segserve_builder.copies import copies
from segserve_builder.copies.copies import FrameWorker, WorkerFrame

START_S, QUESTION_S = 1.0, 0.01


async def waited_s(folder: Path, code: str) -> float:
    """Return the seconds after which a worker of this code has no answer to its first question."""
    (folder / "mute.py").write_text(f"{code}\nimport time\ntime.sleep({HANG_S})")
    worker = FrameWorker("mute", timeout_s=QUESTION_S, environment={**os.environ, "PYTHONPATH": str(folder)})
    began_s = time.monotonic()
    assert await worker.ask(WorkerFrame({}, [])) is None
    assert worker.process is None
    return time.monotonic() - began_s


async def test_the_time_of_a_question_begins_when_the_worker_says_that_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "START_TIMEOUT_S", START_S)

    assert await waited_s(tmp_path, "") >= START_S


async def test_a_worker_that_runs_has_no_more_time_than_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "START_TIMEOUT_S", 2 * HANG_S)

    assert await waited_s(tmp_path, "print(flush=True)") < HANG_S
