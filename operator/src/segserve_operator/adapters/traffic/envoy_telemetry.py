"""Renders what the gateway says of callers' requests: ids in responses, the access log, counters, and spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from segserve_operator.adapters.traffic.envoy_clusters import socket_address
from segserve_operator.adapters.traffic.envoy_counts import LEFT, LEFT_CLUSTER
from segserve_operator.adapters.traffic.envoy_extensions import (
    CALLER,
    extension,
    header_filter,
    status_filter,
    upstream_tls,
)
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.api.telemetry import AccessLog, Tracing

REQUEST_NAMESPACE: Final = "segserve.request"
"""Namespace of the dynamic metadata that says which `model` a request names; routes remove its header."""
FLUSH_ARGUMENTS: Final = ("--file-flush-interval-msec", "1000")
"""Options of Envoy's command line: by default a line may wait for ten seconds."""
METRICS_PATH: Final = "/metrics"
METRICS_CLUSTER: Final = "/metrics/own/http"
"""A cluster's name as all others, but of no model."""
_MOST_ID_BYTES: Final = 128
_MOST_PATH_BYTES: Final = 200
_FIELDS: Final = {
    "start_time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "request_id": f"%REQ(X-REQUEST-ID):{_MOST_ID_BYTES}%",
    "traceparent": "%REQ(TRACEPARENT):55%",
    "caller": f"%DYNAMIC_METADATA({CALLER}:name)%",
    "model": f"%DYNAMIC_METADATA({REQUEST_NAMESPACE}:model)%",
    "revision": "%RESP(X-SEGSERVE-REVISION)%",
    "group": "%RESP(X-SEGSERVE-GROUP)%",
    "slice": "%REQ(X-SEGSERVE-SLICE):64%",
    "method": "%REQ(:METHOD)%",
    # Without the query, in which some callers send their credentials.
    "path": f"%PATH(NQ:PATH:{_MOST_PATH_BYTES})%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "server_duration_ms": "%RESPONSE_DURATION%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "upstream_host": "%UPSTREAM_HOST%",
}
_COLLECTOR: Final = "//collector/http"
"""Name of the cluster that takes spans: as all names of clusters are, of no model."""
_EXPORT_TIMEOUT_S: Final = 5.0
_SAMPLERS: Final = "extensions.tracers.opentelemetry.samplers.v3"
_ATTRIBUTES: Final = {
    "segserve.model": _FIELDS["model"],
    "segserve.revision": _FIELDS["revision"],
    "segserve.group": _FIELDS["group"],
    "segserve.caller": _FIELDS["caller"],
    "segserve.slice": _FIELDS["slice"],
    "segserve.request_id": _FIELDS["request_id"],
    "segserve.attempts": _FIELDS["attempts"],
    "segserve.server": _FIELDS["upstream_host"],
    # Envoy's own has the query.
    "http.url": _FIELDS["path"],
}
"""Attributes of a span in addition to Envoy's own."""
_UUID_TYPE: Final = "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"


def request_ids() -> dict[str, Any]:
    """Return the options of a listener that gives each request an id, which its response has as well.

    A caller's own id is kept as it is, whatever it looks like.
    """
    uuid = {"@type": _UUID_TYPE, "pack_trace_reason": False, "use_request_id_for_trace_sampling": False}
    return {
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {"typed_config": uuid},
    }


def metrics_clusters(socket: str | None) -> list[Json]:
    """Return the cluster of the process that answers `/metrics`; none without a socket."""
    if socket is None:
        return []
    return [_cluster(METRICS_CLUSTER, "STATIC", {"pipe": {"path": socket}}, connect_timeout="1s")]


def access_logs(settings: AccessLog | None, file: Path | None, *, traced: bool = False) -> list[Json]:
    """Return the access log of a listener, into a file or to stdout; none without settings."""
    if settings is None:
        return []
    fields = _FIELDS | ({"trace_id": "%TRACE_ID%"} if traced else {})
    written: Json = {"log_format": {"json_format": fields, "omit_empty_values": True}}
    if file is None:
        name, kind = "envoy.access_loggers.stdout", "extensions.access_loggers.stream.v3.StdoutAccessLog"
    else:
        name, kind = "envoy.access_loggers.file", "extensions.access_loggers.file.v3.FileAccessLog"
        written["path"] = str(file)
    return [extension(name, kind, **written) | {"filter": {"or_filter": {"filters": [*_failures(), _share(settings)]}}}]


def left_counters() -> Json:
    """Return the counters of how long callers waited that left before the answer began, by cluster."""
    tag = {"name": LEFT_CLUSTER, "value_format": "%UPSTREAM_CLUSTER_RAW%"}
    counters = [
        {"stat": {"name": name.partition(".")[2], "tags": [tag]}, "value_format": value} for name, value in LEFT.items()
    ]
    stats = extension(
        "envoy.access_loggers.stats",
        "extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": "left"},
        counters=counters,
    )
    left = {"response_flag_filter": {"flags": ["DC", "DR"]}}
    return stats | {"filter": {"and_filter": {"filters": [left, status_filter(0)]}}}


def tracing(settings: Tracing | None) -> Json:
    """Return the options of a listener that makes a span for each sampled request; none without settings.

    A caller that sends a trace context has decided whether its request is sampled.
    """
    if settings is None:
        return {}
    share = {"numerator": round(settings.sampling_ratio * 1_000_000), "denominator": "MILLION"}
    ratio = extension(
        "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
        f"{_SAMPLERS}.TraceIdRatioBasedSamplerConfig",
        sampling_percentage=share,
    )
    uri = {"uri": settings.traces_url, "cluster": _COLLECTOR, "timeout": f"{_EXPORT_TIMEOUT_S}s"}
    provider = extension(
        "envoy.tracers.opentelemetry",
        "config.trace.v3.OpenTelemetryConfig",
        service_name="segserve-gateway",
        http_service={"http_uri": uri},
        sampler=extension(
            "envoy.tracers.opentelemetry.samplers.parent_based",
            f"{_SAMPLERS}.ParentBasedSamplerConfig",
            wrapped_sampler=ratio,
        ),
    )
    tags = [{"tag": name, "value": value} for name, value in _ATTRIBUTES.items()]
    # Samplers decide after it.
    options = {"operation": f"%REQ(:METHOD)% {_FIELDS['model']}", "custom_tags": tags}
    return {"tracing": {"provider": provider, "random_sampling": {"value": 100}, **options}}


def collector_clusters(settings: Tracing | None) -> list[Json]:
    """Return the cluster that takes spans, if there is one."""
    if settings is None:
        return []
    url = urlsplit(settings.endpoint)
    host, is_tls = url.hostname or "", url.scheme == "https"
    address = socket_address(host, url.port or (443 if is_tls else 80))
    cluster = _cluster(_COLLECTOR, "STRICT_DNS", address, connect_timeout=f"{_EXPORT_TIMEOUT_S}s")
    return [{**cluster, "transport_socket": upstream_tls(host, settings.ca_bundle)} if is_tls else cluster]


def _cluster(name: str, kind: str, address: Json, *, connect_timeout: str) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    assignment = {"cluster_name": name, "endpoints": endpoints}
    return {"name": name, "type": kind, "connect_timeout": connect_timeout, "load_assignment": assignment}


def _failures() -> list[Json]:
    """Return the filters of requests that failed, at the gateway, at a server, or because their caller left."""
    grpc = header_filter("content-type", {"prefix": "application/grpc"})
    refused = {"grpc_status_filter": {"statuses": ["OK"], "exclude": True}}
    status = {"default_value": 400, "runtime_key": "segserve.log.status"}
    return [
        {"status_code_filter": {"comparison": {"op": "GE", "value": status}}},
        {"response_flag_filter": {}},  # any flag
        # The status of HTTP is 200 then.
        {"and_filter": {"filters": [grpc, refused]}},
    ]


def _share(settings: AccessLog) -> Json:
    # Millionths are the finest share that Envoy supports.
    share = {"numerator": round(settings.sampling_ratio * 1_000_000), "denominator": "MILLION"}
    # Otherwise ids of callers decide, and most of them are not as Envoy expects.
    return {
        "runtime_filter": {
            "runtime_key": "segserve.log.share",
            "percent_sampled": share,
            "use_independent_randomness": True,
        }
    }
