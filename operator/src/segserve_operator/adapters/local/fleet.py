"""Groups as processes: an embedded Triton and its agent each, started, watched, restarted, ended."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from segserve_builder.agent.protocol import Assignment, Report
from segserve_builder.render.tritonserver import Ports, sweep_shm
from segserve_builder.sources.access import ACCESS_VARIABLE, Access
from segserve_common.backoff import Backoff
from segserve_operator.adapters.local import processes
from segserve_common.files import write_private
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.runtime import RuntimeEnvironment
from segserve_operator.adapters.local.step_environments import sweep_step_environments
from segserve_operator.adapters.local.triton import LOOPBACK, is_port_free, runtime_environment, triton_command
from segserve_operator.core.models.observed import GroupObserved, ServerObserved
from segserve_operator.core.traffic import Endpoint

SILENCE_S: Final = 6.0
RESTART_BACKOFF: Final = Backoff(first_s=0.5, longest_s=30.0)
CALM_S: Final = 60.0
STOP_GRACE_S: Final = 10.0
# Below the range from which Linux gives ports to outgoing connections: a restarted server finds its ports free.
PORTS: Final = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class GroupFolder:
    """The files of one group."""

    root: Path

    @property
    def assignment(self) -> Path:
        """What the agent is told."""
        return self.root / "assignment.json"

    @property
    def report(self) -> Path:
        """What the agent says."""
        return self.root / "report.json"

    @property
    def repository(self) -> Path:
        """Triton's model repository."""
        return self.root / "repository"

    @property
    def ports(self) -> Path:
        """Where its Triton listens."""
        return self.root / "ports.json"

    def record(self, process: str) -> Path:
        """Return the record of the process `triton` or `agent`."""
        return self.root / f"{process}.process.json"

    def log(self, process: str) -> Path:
        """Return the log of the process `triton` or `agent`."""
        return self.root / f"{process}.log"


@dataclass(slots=True)
class Restarts:
    """When a process may be started again: pauses double while it keeps ending soon after its start."""

    started_s: float = 0.0
    pause_s: float = 0.0
    starts: int = 0
    """Starts in a row, each soon after the one before."""

    def may_start(self, now_s: float) -> bool:
        """Tell whether the pause is over."""
        return now_s >= self.started_s + self.pause_s

    def note(self, now_s: float) -> None:
        """Take a start down, and set the pause before the next."""
        calm = now_s - self.started_s > CALM_S
        self.starts = 1 if calm else self.starts + 1
        self.pause_s, self.started_s = RESTART_BACKOFF.delay_s(self.starts), now_s


@dataclass(slots=True)
class LocalFleet:
    """The groups of one platform. Everything but the times of starts and stops is in files, so a new one takes over."""

    state: StateFolder
    runtime: RuntimeEnvironment
    cache: Path
    access: Access
    _restarts: dict[Path, Restarts] = field(default_factory=dict)
    _stopping_since: dict[str, float] = field(default_factory=dict)

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group with what its agent reports."""
        if not self.state.groups.is_dir():
            return {}
        names = sorted(path.name for path in self.state.groups.iterdir() if (path / "ports.json").exists())
        return {name: self._observe(name) for name in names}

    def _observe(self, name: str) -> GroupObserved:
        folder = self._folder(name)
        ports = _read_ports(folder)
        report = _read_report(folder)
        alive = {name: processes.is_alive(processes.read_record(folder.record(name))) for name in ("triton", "agent")}
        fresh = report is not None and time.time() - report.heartbeat < SILENCE_S
        server = ServerObserved(
            name=name,
            endpoint=Endpoint(LOOPBACK, ports.http, ports.grpc),
            # A server goes on without its agent for as long as what that said last is fresh.
            ready=alive["triton"] and fresh and report is not None and report.server_ready,
            reports=report.models if report is not None else (),
        )
        return GroupObserved(name, (server,), intact=all(alive.values()), assignment=_read_assignment(folder))

    async def start(self, group: str) -> None:
        """Start whichever of a group's processes does not run; one that keeps ending is started ever less often."""
        folder = self._folder(group)
        self._stopping_since.pop(group, None)
        folder.repository.mkdir(parents=True, exist_ok=True)
        if not folder.ports.exists():
            self._choose_ports(folder)
        self._start_triton(group, folder)
        environment = runtime_environment(self.runtime) | {ACCESS_VARIABLE: self.access.model_dump_json()}
        self._start_process(folder, "agent", self._agent_argv(folder), environment)

    def _start_triton(self, group: str, folder: GroupFolder) -> None:
        if processes.is_alive(processes.read_record(folder.record("triton"))):
            return
        ports = _read_ports(folder)
        if not all(is_port_free(port) for port in (ports.http, ports.grpc, ports.metrics)):
            self._choose_ports(folder)
            processes.end(processes.read_record(folder.record("agent")), grace_s=5)
            ports = _read_ports(folder)
        prefix = shm_prefix(self.state, group)
        if self._may_start(folder.record("triton")):
            # Python steps outlive a Triton that crashed, and would keep their memory for ever.
            processes.kill_by_argument(self.state.root, str(folder.repository))
            sweep_shm(prefix)
            sweep_step_environments()
            command = triton_command(self.runtime, folder.repository, ports=ports, shm_prefix=prefix)
            folder.report.unlink(missing_ok=True)  # it speaks of the server that has ended
            self._start_process(folder, "triton", command.argv, command.environment)

    def _choose_ports(self, folder: GroupFolder) -> None:
        others = [_read_ports(GroupFolder(path.parent)) for path in self.state.groups.glob("*/ports.json")]
        taken = frozenset(port for ports in others for port in (ports.http, ports.grpc, ports.metrics))
        write_private(folder.ports, json.dumps(asdict(_free_ports(taken))))

    def _agent_argv(self, folder: GroupFolder) -> list[str]:
        ports = _read_ports(folder)
        return [
            str(self.runtime.python),
            *("-m", "segserve_builder.agent"),
            *("--group-dir", str(folder.root)),
            *("--grpc", str(ports.grpc)),
            *("--cache", str(self.cache)),
            *("--pid-file", str(folder.record("triton"))),
        ]

    def _may_start(self, record: Path) -> bool:
        return self._restarts.setdefault(record, Restarts()).may_start(time.monotonic())

    def _start_process(
        self, folder: GroupFolder, name: str, argv: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        record = folder.record(name)
        if processes.is_alive(processes.read_record(record)) or not self._may_start(record):
            return
        self._restarts[record].note(time.monotonic())
        processes.start(argv, record=record, log=folder.log(name), environment=environment, state=self.state.root)

    async def assign(self, group: str, assignment: Assignment) -> None:
        """Tell a group's agent what to hold."""
        text = json.dumps(assignment.model_dump(mode="json", by_alias=True, exclude_none=True))
        write_private(self._folder(group).assignment, text)

    async def stop(self, group: str) -> None:
        """End a group's processes and then remove its files and shared memory: by a later call, for a Triton
        takes seconds to end, and other groups need attention meanwhile.
        """
        folder = self._folder(group)
        records = [processes.read_record(folder.record(process)) for process in ("agent", "triton")]
        if group not in self._stopping_since:
            self._stopping_since[group] = time.monotonic()
            for record in records:
                processes.terminate(record)
        if time.monotonic() - self._stopping_since[group] < STOP_GRACE_S and any(map(processes.is_alive, records)):
            return
        for record in records:
            processes.end(record, grace_s=0)
        del self._stopping_since[group]
        for process in ("agent", "triton"):
            self._restarts.pop(folder.record(process), None)
        sweep_shm(shm_prefix(self.state, group))
        sweep_step_environments()
        shutil.rmtree(folder.root, ignore_errors=True)

    def _folder(self, group: str) -> GroupFolder:
        return GroupFolder(self.state.groups / group)


def shm_prefix(state: StateFolder, group: str) -> str:
    """Return what the names of a group's shared memory regions begin with."""
    return f"{state.shm_prefix}{group}-"


def _read_ports(folder: GroupFolder) -> Ports:
    return Ports(**json.loads(folder.ports.read_text()))


def _read_assignment(folder: GroupFolder) -> Assignment:
    try:
        return Assignment.model_validate_json(folder.assignment.read_text())
    except FileNotFoundError:
        return Assignment()


def _read_report(folder: GroupFolder) -> Report | None:
    try:
        return Report.model_validate_json(folder.report.read_text())
    except FileNotFoundError:
        return None


def _free_ports(taken: frozenset[int]) -> Ports:
    found = (port for port in random.sample(PORTS, len(PORTS)) if port not in taken and is_port_free(port))
    return Ports(next(found), next(found), next(found))
