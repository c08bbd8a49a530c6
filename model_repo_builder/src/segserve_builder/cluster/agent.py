"""The agent's container: `python3 -m segserve_builder.cluster.agent`.

It writes the shards of its group's assignment into the file that the agent reads.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from pydantic import ValidationError

from segserve_builder.agent.cost import CostAccountant, CostLedger
from segserve_builder.agent.cost_metrics import cost_families, device_family
from segserve_builder.agent.loop import Agent
from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelReport, ModelState
from segserve_builder.agent.runner import ActionRunner
from segserve_builder.agent.server import Repository, ServerObserver, TritonServer
from segserve_builder.cluster.config_map_watch import ConfigMap, ConfigMapWatch
from segserve_builder.cluster.probe_server import ProbeResponse, ProbeServer, probe_response
from segserve_builder.cluster.report_sender import ReportSender
from segserve_builder.cluster.settings import AgentSettings
from segserve_builder.cluster.triton import LinkedProcesses
from segserve_builder.errors import OtherVersionError
from segserve_common.files import replace_file
from segserve_common.kube.client import KubeClient, connect
from segserve_common.kube.names import OWN_REPORTS, REPORTS_KEY, SHARDS, assignment_name, report_name, reports_name
from segserve_common.kube.shards import content_of, unpack, version_of
from segserve_common.logs import LogSettings, start_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from segserve_builder.agent.loop import AgentHealth

RejectedModels: TypeAlias = tuple[ModelReport, ...]
T = TypeVar("T")
_LOG = logging.getLogger("segserve_builder.cluster.agent")  # not `__main__`
LONGEST_PASS_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Shard(Generic[T]):
    """The last content of a shard that could be read, and its version."""

    version: str
    value: T


class ShardInbox(Generic[T]):
    """Calls `deliver` with all shards, in the order of `names`, after every change once each has been read.

    `read` converts the JSON of a shard. If it raises ValueError, or the ConfigMap was deleted, the shard keeps its
    last readable content. Not thread-safe.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[Any], T], deliver: Callable[[tuple[Shard[T], ...]], None]
    ) -> None:
        self._names = tuple(names)
        self._read = read
        self._deliver = deliver
        self._shards: dict[str, Shard[T]] = {}
        self._delivered: tuple[str, ...] = ()

    def take(self, name: str, config_map: ConfigMap | None) -> None:
        """Read the ConfigMap `name`, None if it was deleted."""
        content = content_of(config_map) if config_map is not None else None
        if content is None:
            _LOG.warning("%s is empty or gone; what it said before stays", name)
            return
        version = version_of(content)
        present = self._shards.get(name)
        if present is None or present.version != version:
            try:
                self._shards[name] = Shard(version, self._read(unpack(content)))
            except ValueError as error:
                _LOG.error("%s cannot be read; what it said before stays: %s", name, error)
        self._deliver_changes()

    def _deliver_changes(self) -> None:
        if self._shards.keys() < set(self._names):
            return
        shards = tuple(self._shards[name] for name in self._names)
        versions = tuple(shard.version for shard in shards)
        if versions != self._delivered:
            # In this order, a delivery that raises is repeated with the next event.
            self._deliver(shards)
            self._delivered = versions


@dataclass(frozen=True, slots=True)
class _Part:
    """The models of one shard, and the reports of those that cannot be parsed."""

    models: tuple[AssignedModel, ...]
    rejected: RejectedModels


class AssignmentInbox:
    """Writes the assignment to `path` after every change, once all shards have been read, and calls `on_change`.

    A revision that cannot be read is rejected: the model keeps its last valid revision and does not delay others;
    `on_change` gets the reports about such models.
    """

    def __init__(self, names: Sequence[str], path: Path, on_change: Callable[[RejectedModels], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._last_valid: dict[str, AssignedModel] = {}
        self._shards = ShardInbox(names, self._read, self._deliver)

    def take(self, name: str, config_map: ConfigMap | None) -> None:
        """Read the ConfigMap of the shard `name`, None if it was deleted."""
        self._shards.take(name, config_map)

    def _read(self, value: Any) -> _Part:
        if not isinstance(value, list):
            raise ValueError(f"a shard is a list of models, got {type(value).__name__}")
        models, rejected = [], []
        for plain in value:
            try:
                assigned = AssignedModel.model_validate(plain)
            except ValidationError as error:
                rejection = _rejection(plain, error)
                last_valid = self._last_valid.get(rejection.model)
                # The name says that it is what is loaded: nothing of it has to be read.
                if last_valid is None or last_valid.revision != rejection.revision:
                    rejected.append(rejection)
                if last_valid is not None:
                    models.append(last_valid)
            else:
                self._last_valid[assigned.model] = assigned
                models.append(assigned)
        return _Part(tuple(models), tuple(rejected))

    def _deliver(self, shards: tuple[Shard[_Part], ...]) -> None:
        models = sorted((model for shard in shards for model in shard.value.models), key=lambda each: each.model)
        replace_file(self._path, json.dumps(Assignment(models=tuple(models)).to_json()))
        # Models that are no longer assigned must not come back with an old revision.
        self._last_valid = {model.model: model for model in models}
        self._on_change(tuple(rejection for shard in shards for rejection in shard.value.rejected))


def _rejection(plain: Any, error: ValidationError) -> ModelReport:
    """Return the report of a model that cannot be parsed; raises `error` if it has no readable names."""
    try:
        model, revision = str(plain["pipeline"]["model"]), str(plain["revision"])
    except (KeyError, TypeError):
        raise error from None
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = f"this server's segserve is of another version and cannot read it: {where}: {first['msg']}"
    return ModelReport(
        model=model, revision=revision, state=ModelState.FAILED, reason=OtherVersionError.reason, message=message
    )


class AgentMetrics(Collector):
    """The metrics of the agent whose state `health` returns.

    `api_age_s` returns the seconds since the API server last answered, `memory_bytes` the resident memory of the
    server and its steps, None if that is unknown.
    """

    def __init__(
        self,
        health: Callable[[], AgentHealth],
        api_age_s: Callable[[], float],
        memory_bytes: Callable[[], float | None],
        ledger: CostLedger | None = None,
    ) -> None:
        self._health = health
        self._api_age_s = api_age_s
        self._memory_bytes = memory_bytes
        self._ledger = ledger
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def answer(self) -> ProbeResponse:
        """Return the metrics in Prometheus' text format."""
        return ProbeResponse(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def collect(self) -> Iterable[Metric]:
        """Return the present values."""
        health = self._health()
        models = GaugeMetricFamily("segserve_agent_models", "Assigned and leaving models.", labels=["state"])
        counts = Counter(model.state for model in health.models)
        for state in ModelState:
            models.add_metric([state.value], counts[state])
        ready = GaugeMetricFamily("segserve_agent_server_ready", "Whether Triton answers.", value=health.server_ready)
        silence = GaugeMetricFamily(
            "segserve_agent_api_age_seconds",
            "Seconds since the Kubernetes API last said anything.",
            value=self._api_age_s(),
        )
        families: list[Metric] = [models, ready, silence, device_family(health.models)]
        if health.probe_s is not None:
            name = "segserve_agent_probe_seconds"
            families.append(GaugeMetricFamily(name, "How long the last probe's inference took.", value=health.probe_s))
        memory_bytes = self._memory_bytes()
        if memory_bytes is not None:
            name = "segserve_agent_server_memory_bytes"
            families.append(GaugeMetricFamily(name, "Resident memory of Triton and its steps.", value=memory_bytes))
        if self._ledger is not None:
            families += cost_families(dict(self._ledger.costs), self._ledger.seconds)
        return families


def main() -> None:
    """Keep this pod's Triton equal to its group's assignment until SIGTERM."""
    start_logging(LogSettings.of(os.environ))
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each attempt that is made again
    settings = AgentSettings.of(os.environ)
    pod = Pod(settings, connect(settings.namespace))
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        pod.agent.wake()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    pod.run(stop)
    logging.shutdown()
    # Actions may still wait for a load or a download; each is atomic, and the next agent reads the actual state.
    os._exit(0)


class Pod:
    """An agent, connected to its server, to the API server, and to probes."""

    def __init__(self, settings: AgentSettings, client: KubeClient) -> None:
        folder, pool, group = settings.folder, settings.pool, settings.group
        self._pod_uid = settings.pod_uid
        self._reporting = threading.Lock()
        self._state: tuple[bool, tuple[ModelReport, ...]] | None = None
        self._rejected: RejectedModels = ()
        server = TritonServer(settings.ports.grpc, folder.secret)
        repository = Repository(folder.repository)
        sources = (settings.target, settings.artifact_base, settings.access)
        processes = LinkedProcesses(folder.root)
        runner = ActionRunner(
            server,
            repository,
            settings.cache,
            folder.log,
            *sources,
            gpus=processes.gpus,
            gpu_count=processes.gpu_count,
        )
        observer = ServerObserver(server, repository, processes)
        self.agent = Agent(settings.own_folder, runner, observer, self._report, settings.ports.metrics)
        self._sender = ReportSender(client, reports_name(pool, group), settings.pod, report_name(settings.pod))
        names = [assignment_name(pool, group, shard) for shard in range(SHARDS)]
        self._inbox = AssignmentInbox(names, settings.own_folder / "assignment.json", self._reject)
        self._watch = ConfigMapWatch(client, names, self._take)
        self._costs = CostAccountant(CostLedger(), processes.uses, server.counts, self.agent.served)
        metrics = AgentMetrics(
            lambda: self.agent.health, self._watch.contact_age_s, processes.resident_bytes, self._costs.ledger
        )
        handlers = {"/live": self._live, "/ready": self._ready, "/metrics": metrics.answer}
        self.probes = ProbeServer(settings.probe_port, handlers)

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set."""
        self.probes.start()
        self._sender.start()
        self._watch.start()
        self._costs.start(stop)
        self.agent.run(stop)
        self._sender.stop()
        self._watch.stop()
        self.probes.stop()

    def _take(self, name: str, config_map: ConfigMap | None) -> None:
        self._inbox.take(name, config_map)
        if config_map is not None and (config_map.get("data") or {}).get(REPORTS_KEY) == OWN_REPORTS:
            self._sender.use_own()
        # If the reports were deleted, a new assignment restores this one without waiting for the next check.
        self._sender.check()

    def _report(self, server_ready: bool, models: tuple[ModelReport, ...]) -> None:
        with self._reporting:
            self._state = (server_ready, models)
            self._send()

    def _reject(self, rejected: RejectedModels) -> None:
        self.agent.wake()
        with self._reporting:
            self._rejected = rejected
            self._send()

    def _send(self) -> None:
        if self._state is None:
            return  # the first pass has not ended yet
        server_ready, models = self._state
        reports = [model.to_json() for model in (*models, *self._rejected)]
        self._sender.send({"uid": self._pod_uid, "serverReady": server_ready, "models": reports})

    def _live(self) -> ProbeResponse:
        age_s = time.monotonic() - self.agent.health.passed_s
        return probe_response(age_s < LONGEST_PASS_S, f"the last look at the server was {age_s:.1f} s ago")

    def _ready(self) -> ProbeResponse:
        health = self.agent.health
        waiting = [f"{model.model} is {model.state}" for model in health.models]
        server = "ready" if health.server_ready else "not ready"
        read = "read" if health.has_assignment else "not read yet"
        return probe_response(health.is_settled, "\n".join([f"server {server}, assignment {read}", *waiting]))


if __name__ == "__main__":
    main()
