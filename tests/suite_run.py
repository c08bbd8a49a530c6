"""One run of the tests: a mark on all that it starts, a folder for its temporary files, and an end to both.

A plugin of pytest. A run's name is in the environment of each of its processes and so of all that they start, whatever
session or group those put themselves into. What ends a run is its owner's end: a run that was killed is found by the
next one, which removes what carries its name, and nothing else.
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

from cluster.node import default_node
from segserve_operator.adapters.local.files import StateFolder, cache_folder, replace_file
from segserve_operator.adapters.local.processes import ProcessRecord, alive
from segserve_operator.adapters.local.step_environments import sweep_step_environments

RUN_VARIABLE: Final = "SEGSERVE_TEST_RUN"
_SHM: Final = Path("/dev/shm")
# How long what was asked to end in the last moment may take for it.
_ENDING_S: Final = 10.0
_ROUNDS: Final = 250
# They belong to the process that runs the tests, and end when that does.
_OF_THE_INTERPRETER: Final = ("resource_tracker", "multiprocessing.forkserver")
_OWN: Final = pytest.StashKey["_Started"]()


@dataclass(frozen=True, slots=True)
class Run:
    """A run by its name, the process that it ends with, the machine that knows that process, and its folder."""

    name: str
    pid: int
    create_time: float
    boot: str
    namespace: str
    folder: str

    @property
    def is_alive(self) -> bool:
        """Whether its owner runs; one of a container beside this one may, as far as can be seen from here."""
        if self.boot != _boot():
            return False
        return self.namespace != _namespace() or alive(ProcessRecord(self.pid, self.create_time))


@dataclass(frozen=True, slots=True)
class _Started:
    run: Run
    environment: dict[str, str | None]


def shm_prefix() -> str:
    """Return what the names of a test server's shared memory begin with: they tell which run has to remove it."""
    return f"segtest-{os.environ.get(RUN_VARIABLE, 'none')}-{uuid.uuid4().hex[:8]}-"


def living_runs() -> frozenset[str]:
    """Return the names of the runs whose owner is alive."""
    return frozenset(run.name for run in _recorded() if run.is_alive)


def marked(process: psutil.Process) -> str | None:
    """Return the run that a process belongs to; None where it is none's, or its environment cannot be read."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(RUN_VARIABLE) or None
    return None


def held_regions() -> set[Path]:
    """Return the files of shared memory that a process which can be looked at has in its memory."""
    return {path for pid in psutil.pids() for path in _regions_of(pid)}


def begin() -> Run:
    """Remove what dead runs have left, and begin one."""
    with _one_at_a_time():
        for run in _recorded():
            if not run.is_alive:
                remove(run)
        name = uuid.uuid4().hex[:8]
        own = psutil.Process()
        # Short: the paths of Unix sockets lie below it.
        folder = Path(tempfile.gettempdir()).resolve() / f"segserve-tests-{name}"
        run = Run(name, own.pid, own.create_time(), _boot(), _namespace(), str(folder))
        replace_file(_record(name), json.dumps(asdict(run)))
        folder.mkdir(mode=0o700)
    return run


def remove(run: Run, *, ending_s: float = 0.0) -> list[str]:
    """End and remove all that is left of a run, and say what did not end by itself within `ending_s`."""
    processes = _outlasting(run.name, ending_s)
    regions = {path for process in processes for path in _regions_of(process.pid)} | _regions_named(run.name)
    left = [f"process {process.pid}: {_words(process)}" for process in processes]
    _kill_all(run.name)
    # After that: a script that starts the cluster would go on with it.
    node = default_node()
    with contextlib.suppress(OSError):
        if (node.state / "test-run").read_text().strip() == run.name:
            left.append(f"the cluster in {node.state}")
            node.stop()
    # What platforms have left in shared memory is found by their state folders' names, also where no process is left.
    for groups in list(Path(run.folder).rglob("groups")):
        # Not imported above: where only the builder is installed there is no platform either.
        from segserve_operator.local_platform import supervisor

        supervisor.end(StateFolder(groups.parent))
    for path in sorted((regions | _regions_named(run.name)) - held_regions()):
        if path.exists():
            left.append(f"shared memory {path}")
            path.unlink(missing_ok=True)
    shutil.rmtree(run.folder, ignore_errors=True)
    sweep_step_environments()
    _record(run.name).unlink(missing_ok=True)
    return left


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin a run, unless this is a process of one."""
    if hasattr(config, "workerinput") or os.environ.get(RUN_VARIABLE) in living_runs():
        return
    former = tempfile.gettempdir()
    run = begin()
    # Tests' own folders are where they always are: those of tests that failed are kept.
    settings = {RUN_VARIABLE: run.name, "TMPDIR": run.folder}
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


def _folder() -> Path:
    return cache_folder() / "test-runs"


def _record(name: str) -> Path:
    return _folder() / f"{name}.json"


def _recorded() -> list[Run]:
    found = []
    for path in sorted(_folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Run(**json.loads(path.read_text())))
    return found


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    _folder().mkdir(parents=True, exist_ok=True)
    with (_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _processes_of(name: str) -> list[psutil.Process]:
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in spared or marked(process) != name:
            continue
        with contextlib.suppress(psutil.Error):
            helps = process.ppid() == own.pid and any(word in _words(process) for word in _OF_THE_INTERPRETER)
            if process.status() != psutil.STATUS_ZOMBIE and not helps:
                found.append(process)
    return found


def _outlasting(name: str, ending_s: float) -> list[psutil.Process]:
    """Return a run's processes that do not end by themselves."""
    deadline_s = time.monotonic() + ending_s
    while (found := _processes_of(name)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return found


def _kill_all(name: str) -> None:
    # Again and again: what was listed may have started another meanwhile. Not for ever: some may not be ours to kill.
    for _ in range(_ROUNDS):
        if not (found := _processes_of(name)):
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:200]
    return ""


def _regions_named(name: str) -> set[Path]:
    return set(_SHM.glob(f"segtest-{name}-*"))


def _regions_of(pid: int) -> set[Path]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        return {Path(line.split(None, 5)[5]) for line in lines if f" {_SHM}/" in line}
    return set()
