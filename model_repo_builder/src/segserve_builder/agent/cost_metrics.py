"""Costs and devices of revisions as Prometheus metrics of an agent, and of a machine's gateway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from segserve_builder.agent.cost import Owner, RevisionCost
from segserve_builder.agent.protocol import ModelReport

_OF_REVISION: Final = ("model", "revision")
_GPU: Final = "Time in which networks computed, on servers with GPUs."
_MEMORY: Final = "Memory of the servers' processes, over time."
_REQUESTS: Final = "Requests that servers answered, tests by agents included."


def cost_families(costs: Mapping[Owner, RevisionCost], seconds: float) -> Iterator[Metric]:
    """Yield the counters of costs by model and revision, without labels for what belongs to no revision.

    `seconds` is the time in which they were counted: what a rate of them is to be divided by, since they change seldom.
    """
    yield CounterMetricFamily("segserve_cost_counted_seconds", "Time in which costs were counted.", value=seconds)
    cpu = CounterMetricFamily(
        "segserve_cost_cpu_seconds",
        "CPU time of servers: in a revision's steps, and its share of the server itself.",
        labels=(*_OF_REVISION, "part"),
    )
    requests, gpu, memory = (
        CounterMetricFamily(f"segserve_cost_{name}", text, labels=_OF_REVISION)
        for name, text in (
            ("requests", _REQUESTS),
            ("gpu_seconds", _GPU),
            ("memory_byte_seconds", _MEMORY),
        )
    )
    for owner, cost in costs.items():
        cpu.add_metric((*owner, "steps"), cost.step_cpu_s)
        cpu.add_metric((*owner, "server"), cost.server_cpu_s)
        requests.add_metric(owner, cost.requests)
        memory.add_metric(owner, cost.memory_byte_s)
        if cost.gpu_s:
            gpu.add_metric(owner, cost.gpu_s)
    yield from (cpu, requests, gpu, memory)


def device_family(models: Iterable[ModelReport]) -> Metric:
    """Return a gauge of 1 for each proved revision, with its networks' devices and its server's GPUs as labels."""
    family = GaugeMetricFamily(
        "segserve_revision_device_info",
        "Devices of a revision's networks, and the GPUs of its server.",
        labels=(*_OF_REVISION, "device", "gpus"),
    )
    for report in models:
        if report.proved is not None and report.proved.devices:
            labels = (report.model, report.revision, ",".join(report.proved.devices), "; ".join(report.proved.gpus))
            family.add_metric(labels, 1.0)
    return family
