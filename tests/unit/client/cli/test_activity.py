"""The page's figures: what is read from metrics."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segserve_operator.adapters.local.files import StateFolder
from segserve_platform.cli.options import PlatformOptions, metrics_source
from segserve_platform.platforms.activity import model_rows, servers_row
from segserve_platform.platforms.errors import ControlError, NoPlatformError
from segserve_platform.platforms.metrics import MetricsSnapshot, MetricsSource, increases, quantile, read_series

OF_COINS = 'envoy_cluster_name="coins/main/infer/http",pool="default"'
OWNER = 'pool="default",group="main",model="coins",revision="coins-1"'


def text(requests: float, *, failed: float = 0.0, cpu_s: float = 0.0, counted_s: float = 0.0) -> str:
    """Metrics after so many requests, each of 30 ms, of which some failed."""
    return f"""\
# TYPE envoy_cluster_upstream_rq_completed counter
envoy_cluster_upstream_rq_completed{{{OF_COINS}}} {requests}
envoy_cluster_upstream_rq_completed{{envoy_cluster_name="coins/main/aside/http"}} 1000
envoy_cluster_upstream_rq_xx{{envoy_response_code_class="5",{OF_COINS}}} {failed}
envoy_cluster_upstream_rq_active{{{OF_COINS}}} 2
envoy_cluster_upstream_rq_time_bucket{{{OF_COINS},le="25"}} 0
envoy_cluster_upstream_rq_time_bucket{{{OF_COINS},le="50"}} {requests}
envoy_cluster_upstream_rq_time_bucket{{{OF_COINS},le="+Inf"}} {requests}
segserve_cost_cpu_seconds_total{{{OWNER},part="steps"}} {cpu_s}
segserve_cost_cpu_seconds_total{{{OWNER},part="server"}} {cpu_s / 4}
segserve_cost_counted_seconds_total{{pool="default",group="main"}} {counted_s}
segserve_cost_requests_total{{{OWNER}}} {requests}
nv_inference_queue_duration_us{{model="segserve--net--1",version="1"}} {4000 * requests}
nv_inference_request_success{{model="segserve--net--1",version="1"}} {requests}
nv_inference_request_success{{model="coins",version="1"}} {requests}
segserve_agent_server_memory_bytes{{group="main"}} 5e8
"""


def snapshot(at_s: float, told: str) -> MetricsSnapshot:
    return MetricsSnapshot(at_s, tuple(read_series(told)))


BEFORE, NOW = snapshot(100, text(100, cpu_s=10)), snapshot(110, text(150, failed=5, cpu_s=12, counted_s=10))


def test_a_model_has_what_was_counted_between_two_snapshots() -> None:
    (row,) = model_rows(BEFORE, NOW)

    assert (row.model, row.requests_per_s, row.failed_ratio, row.active) == ("coins", 5.0, 0.1, 2)
    assert (row.p50_ms, row.p95_ms) == pytest.approx((37.5, 48.75))


def test_servers_have_the_cpu_of_all_revisions_and_the_time_in_queues_by_request() -> None:
    servers = servers_row(BEFORE, NOW)

    assert (servers.cpu_cores, servers.memory_bytes, servers.queue_ms) == pytest.approx((0.25, 5e8, 4.0))
    assert servers.gpu_ratio is None


def test_cores_are_by_the_time_that_servers_have_counted_whenever_they_were_looked_at() -> None:
    """One core is busy all the time, and counted every ten seconds."""
    shots = [snapshot(at, text(100, cpu_s=0.8 * (at // 10 * 10), counted_s=at // 10 * 10)) for at in range(0, 60, 2)]
    shown = [servers_row(shots[at], shots[at + 6]).cpu_cores for at in range(len(shots) - 6)]

    assert shown == pytest.approx([1.0] * len(shown))
    assert servers_row(shots[5], shots[6]).cpu_cores is None


def test_numbers_of_a_prometheus_are_by_the_time_between_its_scrapes() -> None:
    def scraped(at_s: float, requests: float, scraped_s: int) -> MetricsSnapshot:
        lines = (line for line in text(requests).splitlines() if not line.startswith("#"))
        return snapshot(at_s, "\n".join(f"{line} {1000 * scraped_s}" for line in lines))

    (row,) = model_rows(scraped(100, 100, 50), scraped(175, 700, 110))
    (still,) = model_rows(scraped(100, 100, 50), scraped(102, 100, 50))

    assert row.requests_per_s == 10.0
    assert still.requests_per_s == 0.0


def test_a_counter_that_fell_has_begun_anew() -> None:
    (row,) = model_rows(NOW, snapshot(120, text(20)))

    assert row.requests_per_s == 2.0


def test_a_group_that_goes_leaves_the_requests_of_the_others() -> None:
    candidate = 'envoy_cluster_upstream_rq_completed{envoy_cluster_name="coins/candidate/infer/http"} 60000\n'
    (row,) = model_rows(snapshot(100, text(500_000) + candidate), snapshot(110, text(500_500)))

    assert row.requests_per_s == 50.0


def test_a_server_that_starts_again_leaves_the_counts_of_the_others() -> None:
    def servers(at_s: float, one: float, other: float) -> MetricsSnapshot:
        pods = {"one": one, "other": other}
        return snapshot(
            at_s, "".join(f'nv_inference_request_success{{model="coins",pod="{p}"}} {n}\n' for p, n in pods.items())
        )

    found = increases(servers(0, 90_000, 90_000), servers(60, 5, 90_030), "nv_inference_request_success", "model")

    assert found == {("coins",): 35.0}


def test_quantiles_of_nothing_are_unknown_and_those_beyond_all_edges_are_the_last_edge() -> None:
    assert quantile({25.0: 0.0, float("inf"): 0.0}, 0.5) is None
    assert quantile({25.0: 0.0, float("inf"): 3.0}, 0.5) == 25.0


def test_a_snapshot_has_only_the_series_of_its_namespace() -> None:
    told = 'up{namespace="lab"} 1\nup{namespace="prod"} 2\nup 3\n'

    assert [each.value for each in read_series(told, "lab")] == [1, 3]


@contextmanager
def federating(metrics: str) -> Iterator[str]:
    """Run a server that answers /federate with metrics as a Prometheus does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.encode() if self.path.startswith("/federate?match") else b""
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def in_namespaces(*names: str) -> str:
    """Metrics of models of one name, on which as much was spent as the number of their namespace."""
    return "".join(
        line.replace("{", f'{{namespace="{name}",', 1) + "\n"
        for number, name in enumerate(names, 1)
        for line in text(1000, cpu_s=80 * number).splitlines()
    )


def test_the_metrics_of_a_cluster_are_those_of_one_namespace_by_default_the_kubeconfigs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "ann", "namespace": "dev"}}],
        "clusters": [{"name": "lab", "cluster": {"server": "https://lab:6443"}}],
        "users": [{"name": "ann", "user": {}}],
    }
    (tmp_path / "config").write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    def cpu_s(options: PlatformOptions) -> Mapping[tuple[str, ...], float]:
        with federating(in_namespaces("dev", "prod")) as url:
            return metrics_source(options, url).snapshot().sums("segserve_cost_cpu_seconds_total", "namespace")

    assert cpu_s(PlatformOptions()) == {("dev",): 100}
    assert cpu_s(PlatformOptions(namespace="prod")) == {("prod",): 200}


def test_without_a_kubeconfig_a_prometheus_of_two_namespaces_asks_for_one() -> None:
    with (
        federating(in_namespaces("dev", "prod")) as url,
        pytest.raises(ControlError, match="of the namespaces dev, prod: choose one with --namespace"),
    ):
        metrics_source(PlatformOptions(), url).snapshot()


def test_without_a_platform_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NoPlatformError, match="segserve up"):
        MetricsSource(StateFolder(tmp_path)).snapshot()


def test_a_cluster_needs_a_prometheus_and_one_that_is_none_is_named() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ControlError, match=url):
            MetricsSource(prometheus=url).snapshot()
    with pytest.raises(ControlError, match="--prometheus"):
        MetricsSource().snapshot()
