"""Child processes that outlive their starter: started, recognised again after a restart, ended for sure."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from segserve_common.files import write_private

# Not SEGSERVE_STATE, which people export: their shell and all it starts would carry the mark.
MARK: Final = "SEGSERVE_CHILD_OF"
ROUNDS: Final = 5
WAIT_S: Final = 0.02
KILLED_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process by id and start time, so that an id that was given out again is not mistaken for it."""

    pid: int
    create_time: float


def start(
    argv: Sequence[str], *, record: Path, log: Path, environment: Mapping[str, str], state: Path
) -> ProcessRecord:
    """Start a process in a session of its own, its output appended to `log`, and record it.

    `state` marks it, and so all its descendants, as one of this platform's, recorded or not.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=marked_environment(environment, state),
            start_new_session=True,
            cwd=record.parent,
        )
    # Its end is seen by polling, as that of a process which an earlier supervisor started.
    child.returncode = 0
    started = ProcessRecord(child.pid, psutil.Process(child.pid).create_time())
    write_private(record, json.dumps(asdict(started)))
    return started


def marked_environment(environment: Mapping[str, str], state: Path) -> dict[str, str]:
    """Return an environment by which a process, and all that it starts, is known as one of this platform's."""
    return {**environment, MARK: str(state)}


def current_process() -> ProcessRecord:
    """Return the record of this process."""
    return ProcessRecord(os.getpid(), psutil.Process().create_time())


def read_record(record: Path) -> ProcessRecord | None:
    """Read a record; None where there is none."""
    try:
        return ProcessRecord(**json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_alive(process: ProcessRecord | None) -> bool:
    """Tell whether that very process runs, reaping it if it is an ended child of ours."""
    return process is not None and _find(process) is not None


def _find(process: ProcessRecord) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        if abs(found.create_time() - process.create_time) > 0.05:
            return None
        if found.status() == psutil.STATUS_ZOMBIE:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            return None
    except psutil.NoSuchProcess:
        return None
    return found


def terminate(process: ProcessRecord | None) -> None:
    """Send SIGTERM and return at once; `is_alive` tells when it has ended."""
    found = _find(process) if process is not None else None
    if found is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.terminate()


def end(process: ProcessRecord | None, *, grace_s: float, descendants: bool = True) -> None:
    """End a process and its descendants: SIGTERM, then SIGKILL for whatever is left after `grace_s`."""
    found = _find(process) if process is not None else None
    if found is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [found, *(found.children(recursive=True) if descendants else ())]
        found.terminate()
        _reap(family, grace_s)


def marked_processes(state: Path) -> list[psutil.Process]:
    """Return every process that carries the platform's mark, this one excepted."""
    return [process for process in psutil.process_iter() if _carries(process, state)]


def end_marked_processes(state: Path, *, grace_s: float) -> int:
    """End `marked_processes` the platform's processes; return how many there were.

    Looks again until none is left: one that was ending may have started another.
    """
    count = 0
    for _ in range(ROUNDS):
        marked = [process for process in marked_processes(state) if _runs(process)]
        if not marked:
            break
        count += len(marked)
        _end_leaders(marked)
        _reap(marked, grace_s)
    return count


def _end_leaders(marked: Sequence[psutil.Process]) -> None:
    # A server ends its own steps, and tidies up after them: they are in its session.
    numbers = {process.pid for process in marked}
    for process in marked:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == process.pid or process.ppid() not in numbers:
                process.terminate()


def kill_by_argument(state: Path, beginning: str) -> None:
    """Kill this platform's processes that have an argument which begins so."""
    for process in marked_processes(state):
        with contextlib.suppress(psutil.Error):
            if any(part.startswith(beginning) for part in process.cmdline()):
                process.kill()


def _carries(process: psutil.Process, state: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == str(state)
    except (psutil.Error, OSError):
        return False


def _reap(family: Sequence[psutil.Process], grace_s: float) -> None:
    left = _outlast(family, grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _outlast(left, KILLED_S)


def _outlast(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all of some processes have ended, and return those that have not by then."""
    # Not psutil.wait_procs: to it an ended process lives until its parent has reaped it, and what is first in a
    # container may take seconds for that, or never do it.
    deadline_s = time.monotonic() + seconds
    left = [process for process in family if _runs(process)]
    while left and time.monotonic() < deadline_s:
        time.sleep(WAIT_S)
        left = [process for process in left if _runs(process)]
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and _find(ProcessRecord(process.pid, process.create_time())) is not None
    except psutil.NoSuchProcess:
        return False
