"""Renders the bootstrap configuration of Envoy: its listeners, and the files from which it reads everything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_builder.capture.rule import CaptureFolder
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_operator.adapters.traffic.envoy_auth import jwks_clusters
from segserve_operator.adapters.traffic.envoy_extensions import watched_file
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings, render_listeners
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.adapters.traffic.envoy_mirror import mirror_clusters
from segserve_operator.adapters.traffic.envoy_overload import render_overload_manager
from segserve_operator.adapters.traffic.envoy_routes import WEIGHTS_NAME
from segserve_operator.adapters.traffic.envoy_telemetry import (
    FLUSH_ARGUMENTS,
    collector_clusters,
    metrics_clusters,
)
from segserve_operator.adapters.traffic.envoy_tls import TlsFiles, render_transport_socket

_UNUSED_STATS: Final = (
    r"cluster\..*\.(assignment_.*|circuit_breakers\..*|default\.total_match_count|lb_.*|max_host_weight"
    r"|membership_(change|degraded|excluded)|outlier_detection\.ejections_[^a].*|update_.*|version|warming_state"
    r"|bind_errors|http[12]\..*|retry_or_shadow_abandoned|upstream_cx_(connect|length)_ms|upstream_flow_control_.*"
    r"|upstream_internal_redirect_.*|upstream_rq_retry_backoff_.*"
    # Duplicates of other statistics: by origin of a request, retries by status, and the messages of gRPC.
    r"|(external|internal)\..*|retry\.upstream_rq_[0-9].*|upstream_rq_[0-9]{3}|grpc\.(request|response)_message_count)"
)
_HISTOGRAMS_EVERY_S: Final = 1
COMPARATOR_FOLDER: Final = "pairs"
"""Folder inside a gateway's folder, shared with its comparator; a container has only this folder."""
CAPTURE_FOLDER: Final = "capture"
"""The same for the capture service."""


@dataclass(frozen=True, slots=True)
class EnvoyFiles:
    """The files of one gateway. The files that Envoy watches are in a folder each, because it watches whole folders.

    They are in protobuf's wire format (`.pb`): Envoy needs a quarter of the time that it needs for JSON.
    """

    folder: Path

    @property
    def bootstrap(self) -> Path:
        """Bootstrap configuration."""
        return self.folder / "envoy.json"

    @property
    def admin_socket(self) -> Path:
        """Socket of the admin interface."""
        return self.folder / "admin.sock"

    @property
    def clusters(self) -> Path:
        """Clusters (CDS)."""
        return self.folder / "clusters/clusters.pb"

    @property
    def routes(self) -> Path:
        """Routes (RDS)."""
        return self.folder / "routes/routes.pb"

    @property
    def weights(self) -> Path:
        """Weights that override the routes' weights (RTDS)."""
        return self.folder / "weights/weights.pb"

    @property
    def limits(self) -> Path:
        """Limits of the models (ECDS), in JSON."""
        return self.folder / "limits/limits.json"

    @property
    def tls(self) -> TlsFiles:
        """The listener's certificate, and the authorities of callers' (SDS)."""
        return TlsFiles(self.folder / "tls")

    @property
    def totals(self) -> Path:
        """Statistics of clusters that have been replaced, to be added to the current ones."""
        return self.folder / "totals.json"

    @property
    def comparator(self) -> ComparatorFolder:
        """What this gateway and its comparator share."""
        return ComparatorFolder(self.folder / COMPARATOR_FOLDER)

    @property
    def capture(self) -> CaptureFolder:
        """What this gateway and its capture service share."""
        return CaptureFolder(self.folder / CAPTURE_FOLDER)

    @property
    def plan(self) -> Path:
        """The traffic plan from which the other files were rendered."""
        return self.folder / "plan.json"


def command(
    binary: str, folder: Path, *, workers: int, log: Path | None = None, drain_s: int = 1, access_log: bool = False
) -> list[str]:
    """Return the command line of an Envoy whose files are in `folder`; without `log` it logs to stderr.

    With an `access_log` its lines are written within a second. While it drains, every response makes its caller
    disconnect; `drain_s` is how long it drains, at least 1 s.
    """
    return [
        binary,
        *("--config-path", str(EnvoyFiles(folder).bootstrap)),
        *("--concurrency", str(workers)),
        *(("--log-path", str(log)) if log is not None else ()),
        *(FLUSH_ARGUMENTS if access_log else ()),
        *("--drain-time-s", str(max(drain_s, 1))),
        *("--drain-strategy", "immediate"),  # the gradual default may never reach a slow caller
        *("--log-level", "warning"),
        *("--component-log-level", "http:critical"),  # a line for each request that is too large: callers fill the log
        "--disable-hot-restart",  # it would need shared memory, and an id that differs between gateways
    ]


def render_bootstrap(settings: EnvoySettings, files: EnvoyFiles, *, timeout_s: float) -> Json:
    """Return the bootstrap configuration; `timeout_s` is the time limit of a request at the internal listener."""
    weights = {"name": WEIGHTS_NAME, "rtds_config": watched_file(files.weights)}
    tls = render_transport_socket(settings.tls, files.tls) if settings.tls is not None else None
    listeners = render_listeners(
        settings, watched_file(files.routes), timeout_s=timeout_s, tls=tls, limits=files.limits
    )
    capture = files.capture if settings.capture else None
    clusters = [
        *jwks_clusters(settings.auth),
        *mirror_clusters(files.comparator, capture),
        *collector_clusters(settings.tracing),
        *metrics_clusters(settings.metrics_socket),
    ]
    return {
        "node": {"id": "gateway", "cluster": "segserve"},
        "admin": {
            "address": {"pipe": {"path": str(files.admin_socket), "mode": 0o600}},
            "ignore_global_conn_limit": True,
        },
        # A model has about a hundred statistics; they take memory only once it gets requests.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        # Histograms are merged over worker threads at each flush; before that, latencies are not visible.
        "stats_flush_interval": f"{_HISTOGRAMS_EVERY_S}s",
        # Unused statistics cost memory, and time whenever statistics are read.
        "stats_config": {"stats_matcher": {"exclusion_list": {"patterns": [{"safe_regex": {"regex": _UNUSED_STATS}}]}}},
        "dynamic_resources": {"cds_config": watched_file(files.clusters)},
        "layered_runtime": {"layers": [{"name": WEIGHTS_NAME, "rtds_layer": weights}]},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "overload_manager": render_overload_manager(settings.heap_bytes),
    }
