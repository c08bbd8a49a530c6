"""Renders the gateway's listeners, for HTTP/1.1, h2c and gRPC, and the filters that a request passes."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES, Json, socket_address
from segserve_operator.adapters.traffic.envoy_replies import render_local_replies, too_large
from segserve_operator.adapters.traffic.envoy_routes import (
    MODEL_HEADER,
    ROUTE_HEADER,
    ROUTES_NAME,
    SERVICE,
    render_internal_routes,
)

STAT_PREFIX: Final = "ingress"
# Which field of which request names the model.
NAME_FIELDS: Final = {
    "ModelInfer": "model_name",
    "ModelStreamInfer": "model_name",
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
}
_ANY_CASE: Final = {"ignore_case": True}
_WINDOW: Final = range(65_535, 2**31)  # what HTTP/2 allows


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway is started with; a change of it takes a new start.

    `max_request_bytes` bounds a request's body, of a gRPC stream its first message. `workers` is the number
    of threads that carry requests. With an `internal_port` there is a second listener, for segserve itself: its
    requests name the group in the header x-segserve-group, whatever the weights; it may be an `internal_socket`
    instead, for this user alone. Requests are refused (503) before Envoy holds more than `heap_bytes`.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    max_request_bytes: int = 64 * 2**20
    workers: int = 1
    internal_port: int | None = None
    internal_socket: str | None = None
    heap_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        if self.max_request_bytes not in _WINDOW:
            allowed = f"{_WINDOW.start} to {_WINDOW.stop - 1}"
            raise ValueError(f"max_request_bytes is {self.max_request_bytes!r}; allowed are {allowed}")


@dataclass(frozen=True, slots=True)
class _Listener:
    """What differs between the listeners. `internal` ones may be told a group."""

    name: str
    address: Json
    routes: Json
    internal: bool


def render_listeners(gateway: Gateway, routes: Json, *, timeout_s: float) -> list[Json]:
    """Return the listeners; `routes` is the source of the public one's routes."""
    rds = {"rds": {"route_config_name": ROUTES_NAME, "config_source": routes}}
    public = _Listener(STAT_PREFIX, socket_address(gateway.host, gateway.port), rds, internal=False)
    fixed = {"route_config": render_internal_routes(timeout_s=timeout_s)}
    return [
        _listener(gateway, public),
        *(_listener(gateway, _Listener("internal", at, fixed, internal=True)) for at in _internal_addresses(gateway)),
    ]


def _internal_addresses(gateway: Gateway) -> list[Json]:
    if gateway.internal_socket is not None:
        return [{"pipe": {"path": gateway.internal_socket, "mode": 0o600}}]
    return [socket_address(gateway.host, gateway.internal_port)] if gateway.internal_port is not None else []


def _listener(gateway: Gateway, told: _Listener) -> Json:
    return {
        "name": told.name,
        "address": told.address,
        "per_connection_buffer_limit_bytes": 2**20,
        "filter_chains": [{"filters": [_connection_manager(gateway, told)]}],
    }


def _connection_manager(gateway: Gateway, told: _Listener) -> Json:
    return _extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=told.name,
        codec_type="AUTO",
        **told.routes,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD",
        generate_request_id=False,
        skip_xff_append=True,
        request_headers_timeout="5s",
        stream_idle_timeout="300s",
        http2_protocol_options={
            "max_concurrent_streams": 1024,
            # The extraction holds a gRPC message until it is whole, at most as much as this window.
            "initial_stream_window_size": gateway.max_request_bytes,
            "initial_connection_window_size": gateway.max_request_bytes,
        },
        early_header_mutation_extensions=[_stripped_headers(keep_group=told.internal)],
        local_reply_config=render_local_replies(gateway.max_request_bytes, internal=told.internal),
        http_filters=[
            *(_refused_body(gateway), _bounded_body(gateway), _name_extraction(), _route_key()),
            *([] if told.internal else [_grpc_statuses()]),
            _router(),
        ],
    )


def _stripped_headers(*, keep_group: bool) -> Json:
    """What only Envoy and segserve may say."""
    ours = (
        [{"exact": ROUTE_HEADER}, {"exact": MODEL_HEADER}] if keep_group else [{"prefix": "x-segserve-", **_ANY_CASE}]
    )
    matches = [{"prefix": "x-envoy-", **_ANY_CASE}, *ours]
    return _extension(
        "envoy.http.early_header_mutation.header_mutation",
        "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove_on_match": {"key_matcher": match}} for match in matches],
    )


def _refused_body(gateway: Gateway) -> Json:
    """Refuses a body that is announced as too large.

    Of all filters the one for health checks reads a body without holding it, so that clients that read nothing
    before they have sent everything see the answer. It answers 503, which the local replies turn into 413.
    """
    return _extension(
        "envoy.filters.http.health_check",
        "extensions.filters.http.health_check.v3.HealthCheck",
        pass_through_mode=False,
        headers=[too_large(gateway.max_request_bytes)],
        cluster_min_healthy_percentages={"no such cluster": {"value": 100.0}},
    )


def _bounded_body(gateway: Gateway) -> Json:
    """Bounds, by holding it, a body of unannounced length; a gRPC message is bounded by its window."""
    announced = _header_matches("content-length", {"safe_regex": {"google_re2": {}, "regex": ".+"}})
    grpc = _header_matches("content-type", {"prefix": "application/grpc"})
    skip = _extension("skip", "extensions.filters.common.matcher.action.v3.SkipFilter")
    matcher = {"predicate": {"or_matcher": {"predicate": [announced, grpc]}}, "on_match": {"action": skip}}
    return _extension(
        "envoy.filters.http.match_delegate",
        "extensions.common.matching.v3.ExtensionWithMatcher",
        extension_config=_extension(
            "envoy.filters.http.buffer",
            "extensions.filters.http.buffer.v3.Buffer",
            max_request_bytes=gateway.max_request_bytes,
        ),
        xds_matcher={"matcher_list": {"matchers": [matcher]}},
    )


def _header_matches(name: str, match: Json) -> Json:
    value = _extension(name, "type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name)
    return {"single_predicate": {"input": value, "value_match": match}}


def _name_extraction() -> Json:
    """Reads the model's name out of gRPC messages, into dynamic metadata."""
    return _extension(
        "envoy.filters.http.grpc_field_extraction",
        "extensions.filters.http.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(_triton_descriptors()).decode()},
        extractions_by_method={
            f"{SERVICE}.{method}": {"request_field_extractions": {field: {}}} for method, field in NAME_FIELDS.items()
        },
    )


def _triton_descriptors() -> bytes:
    from google.protobuf import descriptor_pb2
    from tritonclient.grpc import service_pb2

    found = descriptor_pb2.FileDescriptorSet()
    for file in (*service_pb2.DESCRIPTOR.dependencies, service_pb2.DESCRIPTOR):
        file.CopyToProto(found.file.add())
    descriptors: bytes = found.SerializeToString()
    return descriptors


def _route_key() -> Json:
    """Turns path and extracted name into the key of the table of routes."""
    return _lua("route_key.lua")


def _lua(script: str) -> Json:
    text = files("segserve_operator.adapters.traffic").joinpath(script).read_text()
    return _extension(
        "envoy.filters.http.lua",
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": text},
    )


def _grpc_statuses() -> Json:
    """Counts gRPC's statuses by cluster; it has to know the route, and so comes after the filter that finds it."""
    return _extension(
        "envoy.filters.http.grpc_stats",
        "extensions.filters.http.grpc_stats.v3.FilterConfig",
        individual_method_stats_allowlist={},  # of no method of its own: all of a cluster together
    )


def _router() -> Json:
    codec = _extension("envoy.filters.http.upstream_codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    return _extension(
        "envoy.filters.http.router",
        "extensions.filters.http.router.v3.Router",
        suppress_envoy_headers=True,
        # Each attempt passes these, before it is judged and counted.
        upstream_http_filters=[_lua("clients_faults.lua"), codec],
    )


def _extension(name: str, kind: str, **options: object) -> Json:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **options}}
