"""Groups of the local platform: each is an embedded Triton and its agent, as child processes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import re
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import httpx

from segserve_builder.agent.processes import resident_bytes
from segserve_builder.agent.protocol import HEARTBEAT_FILE, REPORT_FILE, Assignment, Report
from segserve_builder.render.tritonserver import Ports, sweep_shm
from segserve_builder.sources.access import ACCESS_VARIABLE, Access
from segserve_builder.steps.crash_record import forget_crashes
from segserve_common.backoff import Backoff
from segserve_common.files import DamagedFileError, read_file, write_private
from segserve_common.interpreter import python
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.checks.triton_queue import queue_of
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.leftovers import shm_prefix, sweep_step_environments
from segserve_operator.adapters.local.processes import STOP_GRACE_S
from segserve_operator.adapters.local.runtime import RuntimeEnvironment
from segserve_operator.adapters.local.triton import LOOPBACK, is_port_free, runtime_environment, triton_command
from segserve_operator.core.gates.checks import ResourceSample
from segserve_operator.core.traffic import Endpoint
from segserve_operator.core.world.observed import GroupObserved, ServerObserved

FRESH_S: Final = 6.0
REPORT_MAX_AGE_S: Final = 30.0
"""How old an agent's last heartbeat may be, as on a cluster; beyond `FRESH_S` Triton itself must answer."""
PROBE_TIMEOUT_S: Final = 2.0
AGENT_STARTS_S: Final = 300.0
"""How long an agent may take for its first heartbeat; on a cluster its probes allow as much, and end it as well."""
AGENT_HANGS_S: Final = 60.0
"""How long it may go on without another one."""
RESTART_BACKOFF: Final = Backoff(first_s=0.5, longest_s=30.0)
STABLE_AFTER_S: Final = 60.0
"""How long a process must have run for its end not to count as another failure in a row."""
# Below the range that Linux assigns to outgoing connections, so that a restarted server finds its ports free.
PORTS: Final = range(20_000, 32_000)

log = logging.getLogger("segserve")

_SECRET: Final = re.compile(r"[\w-]{16,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class GroupFolder:
    """The files of one group."""

    root: Path

    @property
    def assignment(self) -> Path:
        """Revisions that the agent has to load; written by the supervisor."""
        return self.root / "assignment.json"

    @property
    def report(self) -> Path:
        """State of the server; written by the agent."""
        return self.root / REPORT_FILE

    @property
    def heartbeat_s(self) -> float | None:
        """Unix time of the agent's last heartbeat; None before the first."""
        for name in (HEARTBEAT_FILE, REPORT_FILE):  # an agent of an earlier release renews its report
            with suppress(OSError):
                return (self.root / name).stat().st_mtime
        return None

    @property
    def repository(self) -> Path:
        """Triton's model repository."""
        return self.root / "repository"

    @property
    def ports(self) -> Path:
        """Ports of its Triton."""
        return self.root / "ports.json"

    @property
    def secret(self) -> Path:
        """The word that this Triton's management API requires."""
        return self.root / "server-secret"

    def record(self, process: str) -> Path:
        """Return the record file of the process `triton` or `agent`."""
        return self.root / f"{process}.process.json"

    def log(self, process: str) -> Path:
        """Return the log file of the process `triton` or `agent`."""
        return self.root / f"{process}.log"


@dataclass(slots=True)
class RestartDelays:
    """Delays between starts of a process, doubling while it keeps ending soon after its start."""

    started_s: float = 0.0
    delay_s: float = 0.0
    starts: int = 0
    """Consecutive starts, each soon after the one before."""

    def may_start(self, now_s: float) -> bool:
        """Return whether the delay is over."""
        return now_s >= self.started_s + self.delay_s

    def record_start(self, now_s: float) -> None:
        """Record a start, and set the delay before the next."""
        was_stable = now_s - self.started_s > STABLE_AFTER_S
        self.starts = 1 if was_stable else self.starts + 1
        self.delay_s, self.started_s = RESTART_BACKOFF.delay_s(self.starts), now_s


@dataclass(frozen=True, slots=True)
class AgentPulse:
    """A group's agent and its last heartbeat, since when both are so, and the last look (monotonic)."""

    agent: ProcessRecord | None
    heartbeat_s: float | None
    since_s: float
    looked_s: float
    had_heartbeat: bool = False
    """Whether a heartbeat of this agent has come since it was first seen."""

    def after(self, agent: ProcessRecord | None, heartbeat_s: float | None, now_s: float) -> AgentPulse:
        """Return the pulse of a later look."""
        if agent != self.agent:
            return AgentPulse(agent, heartbeat_s, now_s, now_s)
        if heartbeat_s != self.heartbeat_s:
            return AgentPulse(agent, heartbeat_s, now_s, now_s, had_heartbeat=True)
        # A process that looks so late was itself stopped, and the agent with it.
        since_s = now_s if now_s - self.looked_s > AGENT_HANGS_S else self.since_s
        return replace(self, since_s=since_s, looked_s=now_s)

    @property
    def hangs(self) -> bool:
        """Whether the agent has had no heartbeat for too long."""
        return self.looked_s - self.since_s > (AGENT_HANGS_S if self.had_heartbeat else AGENT_STARTS_S)


@dataclass(slots=True)
class LocalFleet:
    """The groups of one platform.

    All state but times is in files, so a new supervisor continues where another one ended.
    """

    state: StateFolder
    runtime: RuntimeEnvironment
    cache: Path
    access: Access
    traces_url: str | None = None
    _restarts: dict[Path, RestartDelays] = field(default_factory=dict)
    _stopping_since: dict[str, float] = field(default_factory=dict)
    _pulses: dict[str, AgentPulse] = field(default_factory=dict)
    _reports: dict[str, Report | None] = field(default_factory=dict)
    _assignments: dict[str, tuple[int, Assignment]] = field(default_factory=dict)
    """What was read from each group's file of which time, in ns."""

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group with the state of its processes and the report of its agent."""
        if not self.state.groups.is_dir():
            return {}
        names = sorted(path.name for path in self.state.groups.iterdir() if _has_ports(GroupFolder(path)))
        observed = await asyncio.gather(*(self._observe(name) for name in names))
        return dict(zip(names, observed, strict=True))

    async def _observe(self, name: str) -> GroupObserved:
        folder = self._folder(name)
        ports = _read_ports(folder)
        self._reports[name] = report = _read_report(folder, self._reports.get(name))
        triton = processes.is_alive(processes.read_record(folder.record("triton")))
        heartbeat_s = folder.heartbeat_s
        record, now_s = processes.read_record(folder.record("agent")), time.monotonic()
        pulse = self._pulses.get(name, AgentPulse(None, None, now_s, now_s))
        self._pulses[name] = pulse = pulse.after(record, heartbeat_s, now_s)
        agent = processes.is_alive(record) and not pulse.hangs
        age_s = time.time() - heartbeat_s if heartbeat_s is not None else math.inf
        is_fresh = age_s < FRESH_S or (age_s < REPORT_MAX_AGE_S and await _answers(ports.http))
        server = ServerObserved(
            name=name,
            endpoint=Endpoint(LOOPBACK, ports.http, ports.grpc),
            # A server stays ready without its agent for as long as its last heartbeat is fresh.
            ready=triton and is_fresh and report is not None and report.server_ready,
            reports=report.models if report is not None else (),
        )
        return GroupObserved(
            name, (server,), intact=triton and agent and has_secret(folder), assignment=self._assignment(name, folder)
        )

    def _assignment(self, name: str, folder: GroupFolder) -> Assignment:
        """Return the assignment; a damaged one counts as empty, and is written again."""
        try:
            changed_ns = folder.assignment.stat().st_mtime_ns
            if name not in self._assignments or self._assignments[name][0] != changed_ns:
                read = read_file(folder.assignment, lambda text: Assignment.model_validate(json.loads(text)))
                self._assignments[name] = changed_ns, read
        except (OSError, DamagedFileError):
            return Assignment()
        return self._assignments[name][1]

    async def start(self, group: str, replicas: int = 1) -> None:
        """Start the processes of a group that do not run, with growing delays if they keep ending.

        Groups of the local platform have one server.
        """
        folder = self._folder(group)
        self._stopping_since.pop(group, None)
        folder.repository.mkdir(parents=True, exist_ok=True)
        if not _has_ports(folder):
            self._choose_ports(folder)
        self._start_triton(group, folder)
        if group in self._pulses and self._pulses[group].hangs:
            log.warning("the agent of group %s is replaced: it has had no heartbeat for too long", group)
            processes.end(self._pulses.pop(group).agent, grace_s=0)
        environment = runtime_environment(self.runtime) | {ACCESS_VARIABLE: self.access.model_dump_json()}
        self._start_process(folder, "agent", self._agent_argv(folder), environment)

    def _start_triton(self, group: str, folder: GroupFolder) -> None:
        running = processes.read_record(folder.record("triton"))
        if processes.is_alive(running) and not has_secret(folder):
            log.warning("the server of group %s is restarted: its secret is lost", group)
            processes.end(processes.read_record(folder.record("agent")), grace_s=5)
            processes.end(running, grace_s=STOP_GRACE_S)
        if processes.is_alive(running):
            return
        ports = _read_ports(folder)
        if not all(is_port_free(port) for port in (ports.http, ports.grpc, ports.metrics)):
            self._choose_ports(folder)
            processes.end(processes.read_record(folder.record("agent")), grace_s=5)
            ports = _read_ports(folder)
        prefix = shm_prefix(self.state, group)
        if self._may_start(folder.record("triton")):
            # Python steps outlive a Triton that crashed, and would hold their memory forever.
            processes.kill_by_argument(self.state.root, str(folder.repository))
            sweep_shm(prefix)
            sweep_step_environments()
            forget_crashes(folder.repository)
            write_private(folder.secret, api_secret := secrets.token_urlsafe(32))
            command = triton_command(
                self.runtime,
                folder.repository,
                ports=ports,
                shm_prefix=prefix,
                api_secret=api_secret,
                traces_url=self.traces_url,
            )
            folder.report.unlink(missing_ok=True)  # it describes the server that has ended
            self._start_process(folder, "triton", command.argv, command.environment)

    def _choose_ports(self, folder: GroupFolder) -> None:
        folders = (GroupFolder(path.parent) for path in self.state.groups.glob("*/ports.json"))
        others = [_read_ports(other) for other in folders if other != folder and _has_ports(other)]
        taken = frozenset(port for ports in others for port in (ports.http, ports.grpc, ports.metrics))
        free = (port for port in random.sample(PORTS, len(PORTS)) if port not in taken and is_port_free(port))
        write_private(folder.ports, json.dumps(asdict(Ports(next(free), next(free), next(free)))))

    def _agent_argv(self, folder: GroupFolder) -> list[str]:
        ports = _read_ports(folder)
        return [
            *python("-m", "segserve_builder.agent", interpreter=self.runtime.python),
            *("--group-dir", str(folder.root)),
            *("--grpc", str(ports.grpc)),
            *("--metrics", str(ports.metrics)),
            *("--cache", str(self.cache)),
            *("--pid-file", str(folder.record("triton"))),
            *("--secret-file", str(folder.secret)),
        ]

    def _may_start(self, record: Path) -> bool:
        return self._restarts.setdefault(record, RestartDelays()).may_start(time.monotonic())

    def _start_process(
        self, folder: GroupFolder, name: str, argv: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        record = folder.record(name)
        if processes.is_alive(processes.read_record(record)) or not self._may_start(record):
            return
        processes.start(argv, record=record, log=folder.log(name), environment=environment, state=self.state.root)
        self._restarts[record].record_start(time.monotonic())

    async def assign(self, group: str, assignment: Assignment) -> None:
        """Write the assignment of a group's agent."""
        text = json.dumps(assignment.to_json())
        write_private(self._folder(group).assignment, text)

    async def stop(self, group: str) -> None:
        """Request a group's processes to end; once they have, remove its files and shared memory.

        That takes several calls: a Triton needs seconds to end, and the other groups must not wait for it.
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
        self._pulses.pop(group, None)
        self._reports.pop(group, None)
        self._assignments.pop(group, None)
        for process in ("agent", "triton"):
            self._restarts.pop(folder.record(process), None)
        sweep_shm(shm_prefix(self.state, group))
        sweep_step_environments()
        shutil.rmtree(folder.root, ignore_errors=True)

    def _folder(self, group: str) -> GroupFolder:
        return GroupFolder(self.state.groups / group)


class LocalResources:
    """Resource usage of groups: memory and restarts of their processes, and Triton's queue.

    A group is one server, of the group's name.
    """

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._servers: defaultdict[str, set[ProcessRecord]] = defaultdict(set)

    async def look(self, group: str) -> ResourceSample:
        """Return what a group uses now; restarts are those since the first call for the group."""
        folder = GroupFolder(self._state.groups / group)
        process = processes.read_record(folder.record("triton"))
        if process is None:
            return ResourceSample()
        self._servers[group].add(process)
        memory_bytes = await asyncio.to_thread(resident_bytes, folder.record("triton"))
        queue = await queue_of(LOOPBACK, _read_ports(folder).metrics) if _has_ports(folder) else None
        return ResourceSample(
            memory_bytes={} if memory_bytes is None else {group: memory_bytes},
            restarts={group: len(self._servers[group]) - 1},
            queued_s=None if queue is None else queue.queued_s,
            requests=None if queue is None else queue.requests,
        )


def _read_ports(folder: GroupFolder) -> Ports:
    return read_file(folder.ports, _parse_ports)


def _parse_ports(text: str) -> Ports:
    ports = Ports(**json.loads(text))
    if not all(type(port) is int and 0 < port < 65536 for port in (ports.http, ports.grpc, ports.metrics)):
        raise ValueError(f"ports are whole numbers, got {ports}")
    return ports


def _has_ports(folder: GroupFolder) -> bool:
    """Return whether a group's ports are known; a damaged file is written again as its running server has them.

    A server whose ports are not known is ended: it gets others.
    """
    try:
        _read_ports(folder)
    except FileNotFoundError:
        return False
    except (OSError, DamagedFileError) as error:
        log.warning("%s; it is written again", error)
        running = processes.read_record(folder.record("triton"))
        arguments = processes.arguments_of(running)
        try:
            http, grpc, metrics = (int(arguments[f"--{kind}-port"]) for kind in ("http", "grpc", "metrics"))
        except (KeyError, ValueError):
            processes.end(running, grace_s=STOP_GRACE_S)
            return False
        write_private(folder.ports, json.dumps(asdict(Ports(http, grpc, metrics))))
    return True


def has_secret(folder: GroupFolder) -> bool:
    """Return whether the word that manages a group's server is known; a damaged file is written again from it."""
    try:
        if _SECRET.fullmatch(read_file(folder.secret, str)):
            return True
    except FileNotFoundError:
        return False
    except DamagedFileError:
        pass
    hidden = processes.arguments_of(processes.read_record(folder.record("triton")), hidden=True)
    word = next((value.rpartition("=")[2] for value in hidden.values()), "")
    if _SECRET.fullmatch(word):
        write_private(folder.secret, word)
    return _SECRET.fullmatch(word) is not None


def _read_report(folder: GroupFolder, former: Report | None) -> Report | None:
    """Return the agent's report; while a damaged one is not written again, the former."""
    try:
        return read_file(folder.report, lambda text: Report.read(json.loads(text)))
    except FileNotFoundError:
        return None
    except (OSError, DamagedFileError):
        return former


async def _answers(http_port: int) -> bool:
    """Return whether a Triton says that it is ready."""
    try:
        async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
            return (await client.get(f"http://{LOOPBACK}:{http_port}/v2/health/ready")).is_success
    except httpx.HTTPError:
        return False
