"""Liveness and memory of Triton's processes; Triton itself does not notice when a Python step's process dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import psutil

from segserve_builder.agent.state import StepDeath

_STUB: Final = "triton_python_backend_stub"
_ENDED: Final = frozenset({psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})


class ProcessWatch(Protocol):
    """Liveness of a server and of its steps' processes, wherever they run."""

    @property
    def deaths(self) -> Mapping[str, StepDeath]:
        """The last death of each step whose end could be read."""
        ...

    def server_runs(self) -> bool | None:
        """Tell whether the server runs; None if that is not known."""
        ...

    def short_of(self, needed: Mapping[str, int]) -> frozenset[str]:
        """Return the steps with fewer live processes than `needed` says; none if that is not known."""
        ...


class StepProcesses:
    """The stub processes of the Triton that `pid_file` records (`pid`, `create_time`)."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._server: psutil.Process | None = None
        self._stubs: dict[str, list[psutil.Process]] = {}
        self.deaths: dict[str, StepDeath] = {}
        """The last death of each step whose end could be read."""

    def server_runs(self) -> bool | None:
        """Tell whether the recorded server runs; None without a record."""
        server = self._find_server()
        return None if server is None else _is_alive(server)

    def short_of(self, needed: Mapping[str, int]) -> frozenset[str]:
        """Return the steps with fewer live processes than `needed` says; none if the server is not known.

        Listing children walks over all processes of the machine, so it is done only when a cached process is gone.
        """
        if self._find_server() is None:
            return frozenset()
        short = self._short(needed)
        if not short:
            return short
        self._explain(short)
        self._scan()
        return self._short(needed)

    def _short(self, needed: Mapping[str, int]) -> frozenset[str]:
        alive = {step: sum(map(_is_alive, self._stubs.get(step, ()))) for step in needed}
        return frozenset(step for step, count in needed.items() if alive[step] < count)

    def _explain(self, steps: frozenset[str]) -> None:
        for step in steps:
            for process in self._stubs.get(step, ()):
                cause = None if _is_alive(process) else _end_of(process)
                if cause is not None:
                    self.deaths[step] = StepDeath(time.time(), cause)

    def _scan(self) -> None:
        self._stubs = {}
        if self._server is None:
            return
        try:
            children = self._server.children()
        except psutil.Error:
            return
        for child in children:
            step = _step_of(child)
            if step is not None:
                self._stubs.setdefault(step, []).append(child)

    def _find_server(self) -> psutil.Process | None:
        try:
            record = json.loads(self._pid_file.read_text())
            pid, created = int(record["pid"]), float(record["create_time"])
            known = self._server
            if known is None or known.pid != pid or abs(known.create_time() - created) > 0.05:
                self._server = _process(pid, created)
                self._stubs = {}
        except (OSError, ValueError, KeyError, psutil.Error):
            self._server = None
        return self._server


def resident_bytes(pid_file: Path) -> float | None:
    """Return the resident memory of the recorded server and its descendants in bytes; None if it does not run.

    Pages that processes share are counted once for each: only changes of the sum are meaningful.
    """
    try:
        record = json.loads(pid_file.read_text())
        server = _process(int(record["pid"]), float(record["create_time"]))
        members = [] if server is None else [server, *server.children(recursive=True)]
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    sizes = [size for member in members if (size := _resident_bytes(member)) is not None]
    return float(sum(sizes)) if sizes else None


def _resident_bytes(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return None


def _process(pid: int, created: float) -> psutil.Process | None:
    # The number may be another process's by now; the time of the start tells them apart.
    process = psutil.Process(pid)
    return process if abs(process.create_time() - created) <= 0.05 else None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in _ENDED
    except psutil.Error:
        return False


def _end_of(process: psutil.Process) -> str | None:
    """Return what ended a process that its parent has not waited for; None if that cannot be read any more."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        code = os.waitstatus_to_exitcode(int(fields[-1]))
    except (OSError, ValueError, IndexError):
        return None
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when it is out of memory"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _step_of(process: psutil.Process) -> str | None:
    """Return the step that a stub runs, from its first argument: `<repository>/<step>/1/model.py`."""
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return None
    if len(arguments) < 2 or Path(arguments[0]).name != _STUB:
        return None
    return Path(arguments[1]).parent.parent.name
