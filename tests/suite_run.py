"""One run of the tests: a mark on all that it starts, a folder for its temporary files, and an end to both.

A plugin of pytest. The path of a run's record is in the environment of all that its tests start, whatever session or
group that puts itself into. What ends a run is its owner's end: a run that was killed is found by the next one, which
removes what carries its mark, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from cluster import kind
from segserve_common.files import write_private
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.leftovers import sweep_step_environments
from segserve_operator.adapters.local.processes import current_process, is_alive
from tools import CACHE

RUN_VARIABLE: Final = "SEGSERVE_TEST_RUN"
FOLDER_PREFIX: Final = "segserve-tests-"
SHM: Final = Path("/dev/shm")
SHM_PREFIX: Final = "segtest-"
# How long what was asked to end in the last moment may take for it.
_ENDING_S: Final = 10.0
_ROUNDS: Final = 250
# They belong to the process that runs the tests, and end when that does.
_OF_THE_INTERPRETER: Final = ("resource_tracker", "multiprocessing.forkserver")
_OWN: Final = pytest.StashKey["_Started"]()


@dataclass(frozen=True, slots=True)
class Run:
    """A run by the process that it ends with, the namespace that knows that process, and its folder."""

    process: ProcessRecord
    namespace: str
    folder: str

    @property
    def name(self) -> str:
        """What tells it from others."""
        return Path(self.folder).name.removeprefix(FOLDER_PREFIX)

    @property
    def record(self) -> Path:
        """The file that tells of it, beside its folder; the path marks its processes."""
        return Path(f"{self.folder}.json")

    @property
    def is_alive(self) -> bool:
        """Whether its owner runs; one of a container beside this one may, as far as can be seen from here."""
        if self.process.boot_id != current_process().boot_id:
            return False
        return self.namespace != _namespace() or is_alive(self.process)


@dataclass(frozen=True, slots=True)
class _Started:
    run: Run
    environment: dict[str, str | None]


def shm_prefix() -> str:
    """Return what the names of a test server's shared memory begin with: they tell which run has to remove it."""
    return f"{_shm_beginning(os.environ.get(RUN_VARIABLE, 'none'))}{uuid.uuid4().hex[:8]}-"


def recorded(folder: Path) -> list[Run]:
    """Return the runs whose folders are, or were, in a folder for temporary files."""
    return [run for path in sorted(folder.glob(f"{FOLDER_PREFIX}*.json")) if (run := read_run(path)) is not None]


def read_run(record: Path) -> Run | None:
    """Return the run of a record of this user's; None where there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if record.stat().st_uid == os.geteuid():
            found = json.loads(record.read_text())
            return Run(**found | {"process": ProcessRecord.from_fields(found["process"])})
    return None


def goes_on(mark: str | None) -> bool:
    """Tell whether the run that a mark speaks of is alive."""
    run = read_run(Path(mark)) if mark else None
    return run is not None and run.is_alive


def marked(process: psutil.Process) -> str | None:
    """Return the mark of the run that a process belongs to; None where it is none's, or cannot be looked at."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(RUN_VARIABLE) or None
    return None


def held_regions() -> set[Path]:
    """Return the files of shared memory that a process which can be looked at has in its memory."""
    return {path for pid in psutil.pids() for path in _regions_of(pid)}


def begin() -> Run:
    """Remove what dead runs have left, and begin one."""
    temporary = Path(tempfile.gettempdir()).resolve()
    for run in recorded(temporary):
        if not run.is_alive:
            with _claimed(run) as is_there:
                if is_there:
                    remove(run)
    # Short: the paths of Unix sockets lie below it.
    folder = temporary / f"{FOLDER_PREFIX}{uuid.uuid4().hex[:8]}"
    run = Run(current_process(), _namespace(), str(folder))
    write_private(run.record, json.dumps(asdict(run)))
    folder.mkdir(mode=0o700)
    return run


def remove(run: Run, *, ending_s: float = 0.0) -> list[str]:
    """End and remove all that is left of a run, and say what did not end by itself within `ending_s`."""
    mark = str(run.record)
    processes = _outlasting(mark, ending_s)
    regions = {path for process in processes for path in _regions_of(process.pid)} | _regions_named(mark)
    left = [f"process {process.pid}: {_words(process)}" for process in processes]
    _kill_all(mark)
    # After that: a script that starts the cluster would go on with it.
    with contextlib.suppress(OSError):
        if (kind.STATE / "test-run").read_text().strip() == mark:
            left.append(f"the cluster in {kind.STATE}")
            kind.stop()
    # What platforms have left in shared memory is found by their state folders' names, also where no process is left.
    for groups in list(Path(run.folder).rglob("groups")):
        # Not imported above: where only the builder is installed there is no platform either.
        from segserve_operator.local_platform import shutdown

        shutdown.end(StateFolder(groups.parent))
    for path in sorted((regions | _regions_named(mark)) - held_regions()):
        if path.exists():
            left.append(f"shared memory {path}")
            path.unlink(missing_ok=True)
    shutil.rmtree(run.folder, ignore_errors=True)
    sweep_step_environments()
    run.record.unlink(missing_ok=True)
    return left


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, unless this is a process of one."""
    if hasattr(config, "workerinput") or goes_on(os.environ.get(RUN_VARIABLE)):
        return
    former = tempfile.gettempdir()
    run = begin()
    # Tests' own folders are where they always are: those of tests that failed are kept.
    settings = {RUN_VARIABLE: str(run.record), "TMPDIR": run.folder}
    # Otherwise in the home, and made anew in each process where there is none.
    settings["MPLCONFIGDIR"] = str(CACHE / "matplotlib")
    settings["PYTEST_DEBUG_TEMPROOT"] = os.environ.get("PYTEST_DEBUG_TEMPROOT", former)
    config.stash[_OWN] = _Started(run, {name: os.environ.get(name) for name in settings})
    os.environ.update(settings)
    tempfile.tempdir = None


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run, and say what its tests have left."""
    started = config.stash.get(_OWN, None)
    if started is None:
        return
    left = remove(started.run, ending_s=_ENDING_S)
    for name, value in started.environment.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if left and reporter is not None:
        reporter.section("LEFT BY THE TESTS, REMOVED NOW", sep="=", red=True, bold=True)
        for line in left:
            reporter.write_line(line)


@contextlib.contextmanager
def _claimed(run: Run) -> Iterator[bool]:
    """Wait for whoever removes a run, and tell whether it is still to be done."""
    try:
        file = run.record.open()
    except FileNotFoundError:
        yield False
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield run.record.exists()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _processes_of(mark: str) -> list[psutil.Process]:
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in spared or marked(process) != mark:
            continue
        with contextlib.suppress(psutil.Error):
            helps = process.ppid() == own.pid and any(word in _words(process) for word in _OF_THE_INTERPRETER)
            if process.status() != psutil.STATUS_ZOMBIE and not helps:
                found.append(process)
    return found


def _outlasting(mark: str, ending_s: float) -> list[psutil.Process]:
    """Return a run's processes that do not end by themselves."""
    deadline_s = time.monotonic() + ending_s
    while (found := _processes_of(mark)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return found


def _kill_all(mark: str) -> None:
    # Again and again: what was listed may have started another meanwhile. Not for ever: some may not be ours to kill.
    for _ in range(_ROUNDS):
        if not (found := _processes_of(mark)):
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:200]
    return ""


def _shm_beginning(mark: str) -> str:
    return f"{SHM_PREFIX}{Path(mark).stem.removeprefix(FOLDER_PREFIX)}-"


def _regions_named(mark: str) -> set[Path]:
    return set(SHM.glob(f"{_shm_beginning(mark)}*"))


def _regions_of(pid: int) -> set[Path]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        return {Path(line.split(None, 5)[5]) for line in lines if f" {SHM}/" in line}
    return set()
