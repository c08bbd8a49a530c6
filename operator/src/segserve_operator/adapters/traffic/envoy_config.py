"""Renders what Envoy is started with: its listeners, and the files that all else comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES, Json
from segserve_operator.adapters.traffic.envoy_listener import Gateway, render_listeners
from segserve_operator.adapters.traffic.envoy_weights import WEIGHTS_NAME

_UNUSED_STATS: Final = (
    r"cluster\..*\.(assignment_.*|circuit_breakers\..*|default\.total_match_count|lb_.*|max_host_weight"
    r"|membership_(change|degraded|excluded)|outlier_detection\.ejections_[^a].*|update_.*|version|warming_state"
    r"|bind_errors|http[12]\..*|retry_or_shadow_abandoned|upstream_cx_(connect|length)_ms|upstream_flow_control_.*"
    r"|upstream_internal_redirect_.*|upstream_rq_retry_backoff_.*"
    # What is counted twice: where a request came from, what was asked again by status, and gRPC's messages.
    r"|(external|internal)\..*|retry\.upstream_rq_[0-9].*|upstream_rq_[0-9]{3}|grpc\.(request|response)_message_count)"
)
_HISTOGRAMS_EVERY_S: Final = 1
_CONNECTIONS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a gateway's folder has Envoy's files: those that it watches each in a folder of their own."""

    folder: Path

    @property
    def bootstrap(self) -> Path:
        """What Envoy is started with."""
        return self.folder / "envoy.json"

    @property
    def admin_socket(self) -> Path:
        """Where it answers questions about itself."""
        return self.folder / "admin.sock"

    @property
    def clusters(self) -> Path:
        """Servers, by what they are asked for."""
        return self.folder / "clusters/clusters.json"

    @property
    def routes(self) -> Path:
        """Which cluster answers what."""
        return self.folder / "routes/routes.json"

    @property
    def weights(self) -> Path:
        """Weights that are newer than the routes."""
        return self.folder / "weights/weights.json"

    @property
    def totals(self) -> Path:
        """What statistics had come to before their clusters were replaced."""
        return self.folder / "totals.json"

    @property
    def plan(self) -> Path:
        """The plan that all of them were rendered from."""
        return self.folder / "plan.json"


def command(binary: str, folder: Path, *, workers: int, log: Path | None = None, drain_s: int = 1) -> list[str]:
    """Return the command line of an Envoy whose files are in `folder`; without `log` it logs to where it is run.

    Once it is to drain, every answer tells its caller to go; those who do not ask within `drain_s` are not told.
    """
    return [
        binary,
        *("--config-path", str(Sources(folder).bootstrap)),
        *("--concurrency", str(workers)),
        *(("--log-path", str(log)) if log is not None else ()),
        *("--drain-time-s", str(max(drain_s, 1))),
        *("--drain-strategy", "immediate"),  # else a slow caller may never be told
        *("--log-level", "warning"),
        "--disable-hot-restart",  # it would need shared memory, and an id that differs between gateways
    ]


def render_bootstrap(gateway: Gateway, sources: Sources, *, timeout_s: float) -> Json:
    """Return Envoy's bootstrap configuration; `timeout_s` bounds one request at the internal listener."""
    weights = {"name": WEIGHTS_NAME, "rtds_config": _watched(sources.weights)}
    return {
        "node": {"id": "gateway", "cluster": "segserve"},
        "admin": {"address": {"pipe": {"path": str(sources.admin_socket), "mode": 0o600}}},
        # A model's some hundred statistics take memory once it is asked, not before.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        # What nobody looks at takes memory from the start, and time at every question about statistics.
        # Latencies are seen once the threads' own parts are put together.
        "stats_flush_interval": f"{_HISTOGRAMS_EVERY_S}s",
        "stats_config": {"stats_matcher": {"exclusion_list": {"patterns": [{"safe_regex": {"regex": _UNUSED_STATS}}]}}},
        "dynamic_resources": {"cds_config": _watched(sources.clusters)},
        "layered_runtime": {"layers": [{"name": WEIGHTS_NAME, "rtds_layer": weights}]},
        "static_resources": {"listeners": render_listeners(gateway, _watched(sources.routes), timeout_s=timeout_s)},
        "overload_manager": _overload_manager(gateway.heap_bytes),
    }


def _watched(path: Path) -> Json:
    source = {"path": str(path), "watched_directory": {"path": str(path.parent)}}
    return {"resource_api_version": "V3", "path_config_source": source}


def _overload_manager(heap_bytes: int) -> Json:
    """Refuse requests (503) before memory is short, and connections before descriptors are."""
    heap, connections = (
        "envoy.resource_monitors.fixed_heap",
        "envoy.resource_monitors.global_downstream_max_connections",
    )
    resources = f"{TYPES}.extensions.resource_monitors"
    monitors = {
        heap: {"@type": f"{resources}.fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes": heap_bytes},
        connections: {
            "@type": f"{resources}.downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": _CONNECTIONS,
        },
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [{"name": name, "typed_config": config} for name, config in monitors.items()],
        "actions": [
            {
                "name": "envoy.overload_actions.stop_accepting_requests",
                "triggers": [{"name": heap, "threshold": {"value": 0.95}}],
            }
        ],
    }
