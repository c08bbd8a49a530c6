"""Liveness and memory of Triton's processes; Triton itself does not notice when a Python step's process dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import psutil

from segserve_builder.agent.state import StepDeath
from segserve_common.files import read_file
from segserve_common.process_record import ProcessRecord

_STUB: Final = "triton_python_backend_stub"
_ENDED: Final = frozenset({psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
_AT_WORK: Final = frozenset({psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP})
_REAPED: Final = "Triton removed the process before its cause was read"
"""Triton 26.04 waits for a dead process whenever the readiness of its step is queried."""
IDLE_S: Final = 20.0
IDLE_CPU_S: Final = 0.1
"""A process that waits for Triton uses a tenth of this in `IDLE_S`, one that loads far more, also on a busy machine."""


class ProcessUse(NamedTuple):
    """The use of a process: the step that it runs ("" for the server itself), CPU time so far, and memory.

    Memory that it shares with others counts in parts.
    """

    step: str
    cpu_s: float
    memory_bytes: float


class ServerUse(NamedTuple):
    """The use of a server's processes, its number of GPUs, and the CPU time that another process took to look."""

    processes: Mapping[str, ProcessUse]
    gpus: int
    look_cpu_s: float = 0.0


class ProcessWatch(Protocol):
    """Liveness of a server and of its steps' processes, wherever they run."""

    @property
    def deaths(self) -> Mapping[str, StepDeath]:
        """The last death of each step that had one."""

    def server_runs(self) -> bool | None:
        """Return whether the server runs; None if that is not known."""

    def short_of(self, needed: Mapping[str, int]) -> frozenset[str]:
        """Return the steps with fewer live processes than `needed` says; none if that is not known."""

    def end_idle(self, loading: Mapping[str, float]) -> frozenset[str]:
        """End processes of the steps `loading` that have been idle for `IDLE_S`, and return their steps.

        `loading` says how old, in seconds, the processes are at most that a load has started. Called again and again.
        """

    def end_server(self) -> None:
        """End the server once its requests in flight are answered; what started it starts it again."""


class StepProcesses:
    """The stub processes of the Triton that `pid_file` records."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._server: psutil.Process | None = None
        self._record: ProcessRecord | None = None
        self._stubs: dict[str, list[psutil.Process]] = {}
        self._dead: set[psutil.Process] = set()
        self._rest: dict[str, set[psutil.Process]] = {}
        self._seen: dict[psutil.Process, tuple[float, float]] = {}
        self.deaths: dict[str, StepDeath] = {}
        """The last death of each step."""

    def server_runs(self) -> bool | None:
        """Return whether the recorded server runs; None without a record."""
        server = self._find_server()
        return None if server is None else _is_alive(server)

    def short_of(self, needed: Mapping[str, int]) -> frozenset[str]:
        """Return the steps with fewer live processes than `needed` says; none if the server is not known.

        Listing children walks over all processes of the machine, so it is done only when a cached process is gone.
        Where a process of a step has died, Triton 2.51 loads the step again and keeps its other processes. They count
        for nothing, and are ended once they are idle.
        """
        if self._find_server() is None:
            return frozenset()
        former, lacking = self._stubs, self._short(needed)
        if short := lacking:
            self._find_newest(needed)
            lacking = self._short(needed)
        for step in short:
            known = set(former.get(step, ()))
            alive, noticed = set(filter(_is_alive, known)), known & self._dead
            dead = known - alive - noticed
            if not dead:
                continue
            self._dead |= dead
            self._rest.setdefault(step, set()).update(alive)
            cause = next(filter(None, map(_end_of, dead)), None)
            # The rest of a step that was short, and all of one that is complete again, ended because it was reloaded.
            if cause is None and step in lacking and not noticed:
                cause = _REAPED
            if cause is not None:
                self.deaths[step] = StepDeath(time.time(), cause)
        if short:
            self._dead &= {process for processes in self._stubs.values() for process in processes}
        self._end_replaced(needed.keys() - lacking)
        return lacking

    def end_idle(self, loading: Mapping[str, float]) -> frozenset[str]:
        """End processes of the steps `loading` that have been idle for `IDLE_S`, and return their steps.

        Triton takes a process that does not run for a second while it initializes for dead, and then waits forever for
        the end of a healthy process that waits for Triton (`StubLauncher::Launch` in Triton's stub_launcher.cc).
        """
        now_s, ended = time.monotonic(), set()
        stubs = self._find_stubs() if loading and self._find_server() is not None else {}
        for step in loading.keys() & stubs.keys():
            young = []
            for process in stubs[step]:
                with suppress(psutil.Error, OSError):
                    idle_s = self._idle_s(process, now_s)
                    if ProcessRecord.of(process.pid).age_s <= loading[step]:
                        young.append((process, idle_s))
            # Instances that are loaded are idle while another one of the step still loads.
            if young and all(idle_s >= IDLE_S for _, idle_s in young):
                for process, _ in young:
                    with suppress(psutil.Error):
                        process.kill()
                ended.add(step)
        looked_at = {process for step in loading for process in stubs.get(step, ())}
        looked_at = looked_at.union(*self._rest.values())
        self._seen = {process: use for process, use in self._seen.items() if process in looked_at}
        return frozenset(ended)

    def end_server(self) -> None:
        """Send SIGTERM to the server."""
        if (server := self._find_server()) is not None:
            with suppress(psutil.Error):
                server.terminate()

    def _find_newest(self, needed: Mapping[str, int]) -> None:
        """Find the newest processes of each step, those that have died among them."""
        found, former, self._stubs = self._find_stubs(), self._stubs, {}
        for step, count in needed.items():
            known = {*former.get(step, ()), *found.get(step, ())}
            self._stubs[step] = sorted(known, key=lambda process: (process.create_time(), process.pid))[-count:]

    def _end_replaced(self, steps: Collection[str]) -> None:
        now_s = time.monotonic()
        for step in self._rest.keys() & steps:
            for process in self._rest[step] - set(self._stubs[step]):
                with suppress(psutil.NoSuchProcess):
                    if self._idle_s(process, now_s) < IDLE_S:
                        continue
                    process.kill()
                self._rest[step].remove(process)

    def _idle_s(self, process: psutil.Process, now_s: float) -> float:
        """Return for how long a process has been idle since it was first looked at."""
        times = process.cpu_times()
        used_s, since_s = self._seen.get(process, (-IDLE_CPU_S, now_s))
        if process.status() in _AT_WORK or times.user + times.system - used_s >= IDLE_CPU_S:
            used_s, since_s = times.user + times.system, now_s
        self._seen[process] = used_s, since_s
        return now_s - since_s

    def _short(self, needed: Mapping[str, int]) -> frozenset[str]:
        alive = {step: sum(map(_is_alive, self._stubs.get(step, ()))) for step in needed}
        return frozenset(step for step, count in needed.items() if alive[step] < count)

    def _find_stubs(self) -> dict[str, list[psutil.Process]]:
        stubs: dict[str, list[psutil.Process]] = {}
        with suppress(psutil.Error):
            for child in () if self._server is None else self._server.children():
                step = _step_of(child)
                if step is not None:
                    stubs.setdefault(step, []).append(child)
        return stubs

    def _find_server(self) -> psutil.Process | None:
        try:
            record = read_file(self._pid_file, ProcessRecord.from_json)
            if self._server is None or record != self._record:
                self._server, self._record = _process(record), record
                self._stubs, self._dead, self._rest, self._seen = {}, set(), {}, {}
        except (OSError, ValueError, psutil.Error):
            self._server = None
        return self._server


def resident_bytes(pid_file: Path) -> float | None:
    """Return the resident memory of the recorded server and its descendants in bytes; None if it does not run.

    Pages that processes share are counted once for each: only changes of the sum are meaningful.
    """
    sizes = [size for member in _members(pid_file) if (size := _resident_bytes(member)) is not None]
    return float(sum(sizes)) if sizes else None


def _members(pid_file: Path) -> list[psutil.Process]:
    """Return the recorded server and its descendants; none if it does not run."""
    try:
        server = _process(read_file(pid_file, ProcessRecord.from_json))
        return [] if server is None else [server, *server.children(recursive=True)]
    except (OSError, ValueError, psutil.Error):
        return []


def server_use(pid_file: Path) -> dict[str, ProcessUse] | None:
    """Return what the recorded server and its descendants use, by process; None if it does not run."""
    uses: dict[str, ProcessUse] = {}
    for member in _members(pid_file):
        with suppress(psutil.Error, OSError):
            times, key = member.cpu_times(), f"{member.pid}@{ProcessRecord.of(member.pid).start_ticks}"
            uses[key] = ProcessUse(_step_of(member) or "", times.user + times.system, _proportional_bytes(member))
    return uses or None


def _proportional_bytes(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return float(process.memory_info().rss)


def gpu_count() -> int:
    """Return the number of NVIDIA devices that this container has."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def _resident_bytes(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return None


def _process(record: ProcessRecord) -> psutil.Process | None:
    process = psutil.Process(record.pid)
    return process if record.is_present else None


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
