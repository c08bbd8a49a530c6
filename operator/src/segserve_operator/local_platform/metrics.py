"""The metrics of a machine's platform in one text: its gateway's numbers, its servers', costs and rollouts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import httpx
import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from segserve_builder.agent.cost import COSTS_FILE, read_costs
from segserve_builder.agent.cost_metrics import cost_families, device_family
from segserve_builder.cluster.probe_server import ProbeResponse, ProbeServer
from segserve_common.files import read_file
from segserve_common.http.guard import gather_few, get_bounded
from segserve_common.http.urls import RequestError
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import LocalFleet
from segserve_operator.adapters.local.gateway import LocalGateway
from segserve_operator.adapters.local.triton import LOOPBACK
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.api.triton_pool import TritonPool
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.world.observed import EffectFailure, GroupObserved, ModelObserved
from segserve_operator.metrics.resource_gauges import DriftMetrics, ResourceMetrics, SloMetrics
from segserve_operator.metrics.rollout_metrics import RolloutMetrics

MAX_BYTES: Final = 64 * 2**20
SERVER_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 30.0
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CLUSTER: Final = re.compile(r'envoy_cluster_name="([^/"]+)/([^/"]+)/')


class MetricsText:
    """Texts of several processes as one, in which each metric is described once.

    A family has the help and the type of the first text that has it.
    """

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}
        self._samples: dict[str, list[str]] = {}

    def add(self, text: str, labels: Mapping[str, str]) -> None:
        """Add a text, whose samples get these labels."""
        own = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, name, *_ = line.split(" ", 3)
                family = name
                described = self._families.setdefault(name, [])
                if not any(each.startswith(f"# {kind} ") for each in described):
                    described.append(line)
            elif line and not line.startswith("#"):
                name = re.split(r"[{ ]", line, maxsplit=1)[0]
                of = family if family and name.startswith(family) else name
                self._samples.setdefault(of, []).append(_labelled(line, name, own))

    def __str__(self) -> str:
        lines = (line for name, each in self._samples.items() for line in (*self._families.get(name, ()), *each))
        return "".join(f"{line}\n" for line in lines)


def _labelled(line: str, name: str, own: str) -> str:
    found = _CLUSTER.search(line) if line.startswith("envoy_") else None
    labels = ",".join(filter(None, [own, f'model="{found[1]}",group="{found[2]}"' if found else ""]))
    rest = line[len(name) :]
    if not labels:
        return line
    if not rest.startswith("{"):
        return f"{name}{{{labels}}}{rest}"
    return f"{name}{{{labels}{'' if rest.startswith('{}') else ','}{rest[1:]}"


class LocalMetrics(Collector):
    """Serves the metrics at a socket of the state folder, from which the gateway's `/metrics` has them.

    `pool` returns the pool as it is now.
    """

    def __init__(
        self, state: StateFolder, gateway: LocalGateway, fleet: LocalFleet, pool: Callable[[], TritonPool]
    ) -> None:
        self._state, self._gateway, self._fleet, self._pool = state, gateway, fleet, pool
        self._registry = CollectorRegistry(auto_describe=False)
        self._resources = ResourceMetrics(self._registry)
        self._resources.leader.set(1)  # it is the only supervisor of its state folder
        self._rollouts = RolloutMetrics(self._registry)
        self._slo = SloMetrics(self._registry)
        self._drift = DriftMetrics(self._registry)
        self._models: tuple[ModelObserved, ...] = ()
        self._observed_s = time.monotonic()
        self._registry.register(self)

    def observe(
        self,
        models: tuple[ModelObserved, ...],
        records: Mapping[str, Record],
        drifts: Mapping[str, DriftWatch],
        failures: Iterable[EffectFailure],
    ) -> None:
        """Note the models, rollouts and drifts that a pass found, and what it could not write."""
        name = self._pool().metadata.name
        states = {model.name: model.status.rollout for model in models if model.status.rollout is not None}
        self._rollouts.observe("", name, states, records)
        self._drift.observe("", name, drifts)
        self._resources.observe_failures({("", name): failures})
        self._models, self._observed_s = models, time.monotonic()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer at the socket during the block; this process' event loop must run meanwhile."""
        loop, path = asyncio.get_running_loop(), self._state.metrics_socket
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        former = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(former)
        listening.listen()

        def answer() -> ProbeResponse:
            text = asyncio.run_coroutine_threadsafe(self.text(), loop).result(ANSWER_TIMEOUT_S)
            return ProbeResponse(200, text.encode(), CONTENT_TYPE)

        server = ProbeServer(listening, {"/metrics": answer})
        server.start()
        try:
            yield
        finally:
            server.stop()
            path.unlink(missing_ok=True)

    async def text(self) -> str:
        """Return all metrics now; a process that does not answer is left out."""
        name = self._pool().metadata.name
        pool = {"pool": name}
        whole = MetricsText()
        self._rollouts.show()
        self._drift.show()
        self._resources.watch_age.set(time.monotonic() - self._observed_s)
        self._resources.clear()
        self._slo.clear()
        for model in self._models:
            self._observe_model(("", name, model.name), model)
        whole.add((await asyncio.to_thread(generate_latest, self._registry)).decode(), {})
        with contextlib.suppress(EnvoyUnreachableError):
            whole.add((await self._gateway.metrics()).decode(), pool)
        folders = sorted(path.parent for path in self._state.groups.glob("*/ports.json"))
        texts = await gather_few(map(_server_metrics, folders))
        groups = await self._fleet.groups()
        for folder, text in zip(folders, texts, strict=True):
            # A group is one server here: rules and dashboards identify it by its pod.
            labels = {**pool, "group": folder.name, "pod": folder.name}
            whole.add(text, labels)
            whole.add(_agent(folder, groups.get(folder.name)), labels)
        return str(whole)

    def _observe_model(self, key: tuple[str, str, str], model: ModelObserved) -> None:
        ready = next((each.status for each in model.status.conditions if each.type == "Ready"), "Unknown")
        holders = {name: getattr(model.roles, name) for name in ("stable", "candidate", "previous")}
        watched = model.wanted is not None and (model.wanted.slo is not None or model.wanted.policy is not None)
        groups = {role: holder.group for role, holder in holders.items() if watched and holder and holder.group}
        self._resources.observe(key, ready, groups)
        if model.wanted is not None and model.wanted.slo is not None:
            self._slo.observe(key, model.wanted.slo.model_dump(by_alias=True, exclude_none=True))

    def collect(self) -> Iterator[Metric]:
        """Yield what the platform's own processes use."""
        cpu = CounterMetricFamily(
            "segserve_process_cpu_seconds", "CPU time of the platform's own processes.", labels=["process"]
        )
        memory = GaugeMetricFamily(
            "segserve_process_memory_bytes", "Resident memory of the platform's own processes.", labels=["process"]
        )
        for name in ("envoy", "comparator", "capture"):
            record = processes.read_record(self._state.gateway / f"{name}.process.json")
            if record is not None and processes.is_alive(record):
                _add_process(cpu, memory, name, record.pid)
        _add_process(cpu, memory, "supervisor", os.getpid())
        yield from (cpu, memory)


def _add_process(cpu: CounterMetricFamily, memory: GaugeMetricFamily, name: str, pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        times = process.cpu_times()
        cpu.add_metric([name], times.user + times.system)
        memory.add_metric([name], float(process.memory_info().rss))


async def _server_metrics(folder: Path) -> str:
    try:
        port = read_file(folder / "ports.json", lambda text: int(json.loads(text)["metrics"]))
        async with httpx.AsyncClient(timeout=SERVER_TIMEOUT_S, trust_env=False) as client:
            url = f"http://{LOOPBACK}:{port}/metrics"
            content = await get_bounded(client, url, max_bytes=MAX_BYTES, timeout_s=SERVER_TIMEOUT_S)
    except (RequestError, OSError, ValueError):
        return ""
    return content.decode(errors="replace")


def _agent(folder: Path, group: GroupObserved | None) -> str:
    """Return whether the group's server answers its agent, what the agent has counted, and the processes' memory."""
    families: list[Metric] = []
    if group is not None:
        ready = all(server.ready for server in group.servers)
        families.append(GaugeMetricFamily("segserve_agent_server_ready", "Whether Triton answers.", value=ready))
        families.append(device_family(report for server in group.servers for report in server.reports))
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        stored = read_file(folder / COSTS_FILE, json.loads)
        memory_bytes = sum(float(use[2]) for use in stored["last"]["processes"].values())
        families += cost_families(read_costs(stored), float(stored.get("seconds", 0.0)))
        text = "Resident memory of Triton and its steps."
        families.append(GaugeMetricFamily("segserve_agent_server_memory_bytes", text, value=memory_bytes))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families))
    return generate_latest(registry).decode()


class _Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
