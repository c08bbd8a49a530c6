"""The agent's container: `python3 -m segserve_builder.cluster.agent`."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

from segserve_builder.agent.cost import CostAccountant, CostLedger
from segserve_builder.agent.loop import Agent
from segserve_builder.agent.observer import ServerObserver
from segserve_builder.agent.runner import ActionRunner
from segserve_builder.agent.server import Repository, TritonServer
from segserve_builder.cluster.agent_metrics import AgentMetrics
from segserve_builder.cluster.assignment import AssignmentInbox
from segserve_builder.cluster.config_map_watch import ConfigMap, ConfigMapWatch
from segserve_builder.cluster.probe_server import ProbeResponse, ProbeServer, probe_response
from segserve_builder.cluster.process_link import LinkedProcesses
from segserve_builder.cluster.report_sender import ReportSender
from segserve_builder.cluster.settings import AgentSettings
from segserve_common.kube.client import KubeClient, connect
from segserve_common.kube.names import OWN_REPORTS, REPORTS_KEY, SHARDS, assignment_name, report_name, reports_name
from segserve_common.logs import LogSettings, start_logging

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import ModelReport
    from segserve_builder.cluster.assignment import RejectedModels

LONGEST_PASS_S: Final = 30.0


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
        runner = ActionRunner(server, repository, settings.cache, folder.log, *sources)
        processes = LinkedProcesses(folder.root)
        observer = ServerObserver(server, repository, processes)
        self.agent = Agent(settings.own_folder, runner, observer, self._report, settings.ports.metrics)
        self._sender = ReportSender(client, reports_name(pool, group), settings.pod, report_name(settings.pod))
        names = [assignment_name(pool, group, shard) for shard in range(SHARDS)]
        self._inbox = AssignmentInbox(names, settings.own_folder / "assignment.json", self._reject)
        self._watch = ConfigMapWatch(client, names, self._take)
        self._costs = CostAccountant(CostLedger(), processes.uses, server.counts, self.agent.served, runner.tests)
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
