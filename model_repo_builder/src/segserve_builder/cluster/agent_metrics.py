"""Metrics of an agent, collected at each scrape."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from segserve_builder.agent.cost_metrics import cost_families
from segserve_builder.agent.protocol import ModelState
from segserve_builder.cluster.probe_server import ProbeResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from segserve_builder.agent.cost import CostLedger
    from segserve_builder.agent.loop import AgentHealth


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
        families: list[Metric] = [models, ready, silence]
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
