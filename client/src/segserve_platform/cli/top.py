"""`segserve top`: how models and servers do now, as a table that is drawn again and again."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segserve.platform import Cluster
from segserve_platform.cli.options import PlatformOptions, ReportFormat, is_local, seconds, with_platform_options
from segserve_platform.cli.terminal import print_whole
from segserve_platform.platforms.local import local_store
from segserve_platform.platforms.metrics import FAULTS, MetricsSnapshot, MetricsSource, increases, quantile, rates

WINDOW_S: Final = 12.0
"""More than the ten seconds after which servers count costs."""
PROMETHEUS_WINDOW_S: Final = 75.0
"""A Prometheus has new numbers only after each scrape, which is every minute by default."""
INTERVAL: Final = "2s"
HISTORY: Final = 30
CLASSES: Final = 3
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDE: Final = 110
_COLUMNS: Final = ("MODEL", "REQ/S", "", "P50", "P95", "ERRORS", "ACTIVE", "CPU/REQ")

Prometheus = Annotated[
    str | None,
    typer.Option(help="URL of a Prometheus that has the metrics. Default: the platform of this machine."),
]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model's numbers in a while; None is unknown."""

    model: str
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    failed_ratio: float | None
    active: float
    cpu_s_per_request: float | None
    objects_per_s: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return it with the names of the command's JSON."""
        return {
            "model": self.model,
            "requestsPerSecond": round(self.requests_per_s, 3),
            "p50Milliseconds": self.p50_ms,
            "p95Milliseconds": self.p95_ms,
            "failedRatio": self.failed_ratio,
            "active": int(self.active),
            "cpuSecondsPerRequest": self.cpu_s_per_request,
            "objectsPerSecond": {name: round(rate, 3) for name, rate in self.objects_per_s.items()},
        }


@dataclass(frozen=True, slots=True)
class ServersRow:
    """The numbers of all servers together in a while; None is unknown."""

    cpu_cores: float | None
    memory_bytes: float
    queue_ms: float | None
    gpu_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it with the names of the command's JSON."""
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
    objects: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for (model, name), rate in rates(before, now, "segserve_class_instances_total", "model", "class").items():
        objects[model][name] = rate
    active = now.sums("envoy_cluster_upstream_rq_active", "model")
    cpu_s = increases(before, now, "segserve_cost_cpu_seconds_total", "model")
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
            cpu_s_per_request=cpu_s.get((model,), 0.0) / counted[model,] if counted.get((model,)) else None,
            objects_per_s=dict(sorted(objects[model].items(), key=lambda item: -item[1])),
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


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last values as bars, the highest of which is the largest value."""
    shown = list(values)[-width:]
    largest = max(shown, default=0.0)
    if largest <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(int(value / largest * len(_BARS)), len(_BARS) - 1)] for value in shown)


@dataclass(slots=True)
class TopView:
    """The snapshots of the last seconds, and each model's rate since the command began."""

    window_s: float
    snapshots: deque[MetricsSnapshot] = field(default_factory=deque)
    rates: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict[str, deque[float]](lambda: deque(maxlen=HISTORY))
    )

    def add(self, snapshot: MetricsSnapshot) -> None:
        """Take a snapshot; of those before the window one is kept."""
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

    def drawn(self, width: int) -> Group:
        """Return the table, without what does not fit into the width."""
        models, servers = self.rows()
        wide = width >= _WIDE
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in (*_COLUMNS, *(("OBJECTS/S",) if wide else ())):
            numeric = name in _COLUMNS[1:2] + _COLUMNS[3:]
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if numeric else "left")
        for row in models:
            objects = ", ".join(f"{name} {rate:.1f}" for name, rate in list(row.objects_per_s.items())[:CLASSES])
            failed = Text(_percent(row.failed_ratio), style="red" if row.failed_ratio else "")
            table.add_row(
                row.model,
                f"{row.requests_per_s:.1f}",
                sparkline(self.rates[row.model], 20 if wide else 10),
                _milliseconds(row.p50_ms),
                _milliseconds(row.p95_ms),
                failed,
                f"{row.active:.0f}",
                _milliseconds(None if row.cpu_s_per_request is None else 1000 * row.cpu_s_per_request),
                *((objects,) if wide else ()),
            )
        parts = [
            f"CPU {'-' if servers.cpu_cores is None else f'{servers.cpu_cores:.2f}'} cores",
            f"memory {decimal(int(servers.memory_bytes))}",
            f"queue {_milliseconds(servers.queue_ms)}",
            *([] if servers.gpu_ratio is None else [f"GPU {_percent(servers.gpu_ratio)}"]),
        ]
        head = Text(f"servers: {', '.join(parts)}", style="bold")
        return Group(head, table) if models else Group(head, Text("no model has had a request yet", style="dim"))


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def metrics_source(options: PlatformOptions, prometheus: str | None) -> MetricsSource:
    """Return where the selected platform's metrics are read: on a cluster those of the selected namespace."""
    if is_local(options):
        return MetricsSource(local_store().state if prometheus is None else None, prometheus)
    if prometheus is None or options.namespace is not None:
        return MetricsSource(prometheus=prometheus, namespace=options.namespace)
    from segserve_platform.platforms.cluster.config import context_of

    return MetricsSource(
        prometheus=prometheus, namespace=context_of(Cluster(options.context, None, options.kubeconfig)).namespace
    )


@with_platform_options
def top(
    platform_options: PlatformOptions,
    interval: Annotated[
        str | None,
        typer.Option(help="Time between two looks. Default: 2s; with --once 12s, or 75s from a Prometheus."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what happens in one interval, and end.")] = False,
    prometheus: Prometheus = None,
    output: Annotated[ReportFormat, typer.Option("--output", "-o", help="Output format.")] = ReportFormat.TEXT,
) -> None:
    """Show how models and servers do now: requests, latencies, errors, CPU, memory, queues and what is found.

    The table is drawn again after each interval until Ctrl-C; `-o json` prints a line for each. On a cluster the
    numbers come from its Prometheus.
    """
    source, window_s = metrics_source(platform_options, prometheus), PROMETHEUS_WINDOW_S if prometheus else WINDOW_S
    interval_s = window_s if once and interval is None else max(seconds(interval or INTERVAL), 0.2)
    view, console = TopView(window_s), Console()
    view.add(source.snapshot())
    if output is ReportFormat.JSON or once:
        while True:
            time.sleep(interval_s)
            view.add(source.snapshot())
            if output is ReportFormat.TEXT:
                print_whole(console, view.drawn(console.width))
            else:
                typer.echo(json.dumps(_as_json(view)))
            if once:
                return
    with Live(view.drawn(console.width), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            time.sleep(interval_s)
            view.add(source.snapshot())
            live.update(view.drawn(console.width), refresh=True)


def _as_json(view: TopView) -> dict[str, Any]:
    models, servers = view.rows()
    before, now = view.snapshots[0], view.snapshots[-1]
    return {
        "at": round(now.at_s, 3),
        "seconds": round(now.at_s - before.at_s, 3),
        "models": [row.to_json() for row in models],
        "servers": servers.to_json(),
    }
