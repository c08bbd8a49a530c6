"""The activity of models and servers between two snapshots of their metrics."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Final

from segserve_platform.platforms.metrics import FAULTS, MetricsSnapshot, increases, quantile, rates

WINDOW_S: Final = 12.0
"""More than the ten seconds after which servers count costs."""
PROMETHEUS_WINDOW_S: Final = 75.0
"""A Prometheus has new numbers only after each scrape, which is every minute by default."""
HISTORY: Final = 30
"""Snapshots whose rates are kept."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model's numbers in a while; None is unknown."""

    model: str
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    failed_ratio: float | None
    active: float

    def to_json(self) -> dict[str, Any]:
        """Return it with the names of JSON."""
        return {
            "model": self.model,
            "requestsPerSecond": round(self.requests_per_s, 3),
            "p50Milliseconds": self.p50_ms,
            "p95Milliseconds": self.p95_ms,
            "failedRatio": self.failed_ratio,
            "active": int(self.active),
        }


@dataclass(frozen=True, slots=True)
class ServersRow:
    """The numbers of all servers together in a while; None is unknown."""

    cpu_cores: float | None
    memory_bytes: float
    queue_ms: float | None
    gpu_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it with the names of JSON."""
        return {
            "cpuCores": None if self.cpu_cores is None else round(self.cpu_cores, 3),
            "memoryBytes": int(self.memory_bytes),
            "queueMilliseconds": self.queue_ms,
            "gpuRatio": self.gpu_ratio,
        }


def model_rows(before: MetricsSnapshot, now: MetricsSnapshot) -> list[ModelRow]:
    """Return what each model did between two snapshots, the busiest first."""
    completed = "envoy_cluster_upstream_rq_completed"
    requests, requests_per_s = (count(before, now, completed, "model") for count in (increases, rates))
    failed: defaultdict[str, float] = defaultdict(float)
    of_http = increases(
        before, now, "envoy_cluster_upstream_rq_xx", "model", envoy_response_code_class="5", protocol="http"
    )
    of_grpc = [increases(before, now, f"envoy_cluster_grpc_{code}", "model") for code in FAULTS]
    for counts in (of_http, *of_grpc):
        for (model,), count in counts.items():
            failed[model] += count
    buckets: defaultdict[str, dict[float, float]] = defaultdict(dict)
    for (model, edge), count in increases(before, now, "envoy_cluster_upstream_rq_time_bucket", "model", "le").items():
        buckets[model][float(edge)] = count
    active = now.sums("envoy_cluster_upstream_rq_active", "model")
    counted = increases(before, now, "segserve_cost_requests_total", "model")
    models = {model for (model,) in requests.keys() | counted.keys() if model}
    rows = [
        ModelRow(
            model,
            requests_per_s=requests_per_s.get((model,), 0.0),
            p50_ms=quantile(buckets[model], 0.5),
            p95_ms=quantile(buckets[model], 0.95),
            failed_ratio=failed[model] / requests[model,] if requests.get((model,)) else None,
            active=active.get((model,), 0.0),
        )
        for model in models
    ]
    return sorted(rows, key=lambda row: (-row.requests_per_s, row.model))


def _cpu_cores(before: MetricsSnapshot, now: MetricsSnapshot) -> float | None:
    """Return the CPU of all servers, each by the time that it has counted; None if none has since."""
    name = "segserve_cost_counted_seconds_total"
    of_server = sorted({label for series in now.series if series.name == name for label in series.labels})
    used_s = increases(before, now, "segserve_cost_cpu_seconds_total", *of_server)
    counted_s = {key: amount for key, amount in increases(before, now, name, *of_server).items() if amount > 0}
    return sum(used_s.get(key, 0.0) / amount for key, amount in counted_s.items()) if counted_s else None


def servers_row(before: MetricsSnapshot, now: MetricsSnapshot) -> ServersRow:
    """Return what the servers did between two snapshots."""
    steps = increases(before, now, "nv_inference_queue_duration_us", "model")
    queued_us = sum(amount for (model,), amount in steps.items() if model.startswith("segserve--"))
    answered = increases(before, now, "nv_inference_request_success", "model")
    requests = sum(count for (model,), count in answered.items() if not model.startswith("segserve--"))
    gpus = [series.value for series in now.series if series.name == "nv_gpu_utilization"]
    return ServersRow(
        cpu_cores=_cpu_cores(before, now),
        memory_bytes=sum(now.sums("segserve_agent_server_memory_bytes").values()),
        queue_ms=queued_us / 1000 / requests if requests else None,
        gpu_ratio=sum(gpus) / len(gpus) if gpus else None,
    )


@dataclass(slots=True)
class ActivityWindow:
    """The snapshots of the last seconds, and each model's rate at the latest ones."""

    window_s: float
    snapshots: deque[MetricsSnapshot] = field(default_factory=deque)
    rates: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict[str, deque[float]](lambda: deque(maxlen=HISTORY))
    )

    def add(self, snapshot: MetricsSnapshot) -> None:
        """Take a snapshot; one of the snapshots before the window is kept."""
        self.snapshots.append(snapshot)
        while len(self.snapshots) > 2 and snapshot.at_s - self.snapshots[1].at_s >= self.window_s:
            self.snapshots.popleft()
        if len(self.snapshots) > 1:
            scraped = any(series.at_s is not None for series in snapshot.series)
            for row in model_rows(self.snapshots[0 if scraped else -2], snapshot):
                self.rates[row.model].append(row.requests_per_s)

    def rows(self) -> tuple[list[ModelRow], ServersRow]:
        """Return what models and servers did in the window."""
        before, now = self.snapshots[0], self.snapshots[-1]
        return model_rows(before, now), servers_row(before, now)
