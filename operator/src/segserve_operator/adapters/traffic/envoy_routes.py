"""Renders Envoy's routes: one table, whose keys route_key.lua computes, and the weights that override those in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from segserve_operator.adapters.traffic.envoy_affinity import hash_policy, salt_of_route, server_headers, split_options
from segserve_operator.adapters.traffic.envoy_auth import access_of_route
from segserve_operator.adapters.traffic.envoy_clusters import (
    PROTOCOLS,
    TYPES,
    Protocol,
    Purpose,
    Upstream,
    heaviest,
    weighted_clusters,
)
from segserve_operator.adapters.traffic.envoy_limits import limits_of_route
from segserve_operator.adapters.traffic.envoy_messages import (
    ROUTE_CONFIGURATION,
    ROUTE_MAP,
    RUNTIME,
    Json,
    encode,
    encode_with,
    parse,
    parse_json,
    to_json,
)
from segserve_operator.adapters.traffic.envoy_mirror import mirror_metadata, mirror_policy, mirror_scripts
from segserve_operator.adapters.traffic.envoy_plain_http import class_names_of_route
from segserve_operator.adapters.traffic.envoy_telemetry import METRICS_CLUSTER, METRICS_PATH
from segserve_operator.core.traffic import RESTART_S, AccessRule, Callers, Route, Share

ROUTES_NAME: Final = "models"
ROUTE_HEADER: Final = "x-segserve-route"
MODEL_HEADER: Final = "x-segserve-model"
REVISION_HEADER: Final = "x-segserve-revision"
DEVICE_HEADER: Final = "x-segserve-device"
GROUP_HEADER: Final = "x-segserve-group"
SERVICE: Final = "inference.GRPCInferenceService"
SERVER_PATHS: Final = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats")
SERVER_METHODS: Final = ("ServerLive", "ServerReady", "ServerMetadata", "ModelStatistics")
_ANYONE: Final = AccessRule(callers=Callers.ANONYMOUS)
_OF_ALL_MODELS: Final = ("/v2/models/stats", f"/{SERVICE}/ModelStatistics", METRICS_PATH)
WEIGHTS_NAME: Final = "weights"
# Inference has no side effects, so a request may be retried once if no response had begun; another server is preferred,
# and the clusters' retry budget keeps a failing group from doubling its own load.
_RETRY: Final = {
    "retry_on": "connect-failure,refused-stream,reset",
    "num_retries": 1,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": f"{TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }
    ],
    # The server that just failed has the fewest requests in flight, so the balancer keeps choosing it.
    "host_selection_retry_max_attempts": 100,
}
RESTART_METADATA: Final = "segserve.restart"
"""What a route says of the answer if no server does."""
_LOOPBACK: Final = [f"{host}{port}" for host in ("localhost", "127.0.0.1", "[::1]") for port in ("", ":*")]
_OTHER_HOST: Final = "without --auth this gateway answers to Host: localhost, 127.0.0.1 and [::1] alone"
# A body is kept until its response begins, to be sent again; of a larger one the client is told to send it again. By
# default Envoy keeps no more than a connection's buffer, which photographs exceed.
_MOST_KEPT_BYTES: Final = 8 * 2**20
# A server with a dead Python step responds with 500 (INTERNAL) until its agent notices. segserve's own requests are not
# retried on it: a revision that fails sometimes has to be seen failing.
# One that ends has unloaded its models some time before it closes its ports, and one that was restarted has not loaded
# them yet. faults.lua tells that from a caller's fault, such as a version that does not exist, which must not be
# retried: each retry counts as a failed attempt.
_CALLERS_RETRY: Final = {
    **_RETRY,
    "retry_on": f"{_RETRY['retry_on']},retriable-status-codes,internal,retriable-headers",
    "retriable_status_codes": [500],
    "retriable_headers": [{"name": "retry-after", "present_match": True}],
}


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Renders entries of the table of routes. `timeout_s` is the time limit of one request.

    It runs from the last byte of the request to the last of the response. Entries contain weights, and the key prefix
    of weights that override them: weights change far more often than the rest, and Envoy reads a table as a whole.
    """

    timeout_s: float

    def route_entries(self, route: Route, written: Route) -> dict[str, Json]:
        """Return the entries of one model; `written` is the same route with the weights to write into them."""
        restart = _restart(max(share.restart_s for share in route.shares))
        marks = {**limits_of_route(route), **salt_of_route(route), **restart}
        access = {} if route.access is None else access_of_route(route.access)
        guard, limited = _options(access, {}), _options(access, marks)
        # Bare networks are not compared.
        filters, metadata = {**access, **mirror_scripts(route)}, {**marks, **mirror_metadata(route)}
        # Plain requests are of HTTP.
        copied = {
            "http": _options(filters, {**metadata, **class_names_of_route(route)}),
            "grpc": _options(filters, metadata),
        }
        # Models share steps, so these have no callers of their own: with rules, a model's are not public.
        steps = route.steps if route.access is None else ()
        entries: dict[str, Json] = {}
        for protocol in PROTOCOLS:
            about = self.cluster_entry(Upstream("aside", protocol, route.model, heaviest(route).group), **guard)
            entries |= {f"{protocol}:about:{name}": about for name in (route.model, *steps, *route.exposed)}
            inferred = self._split("infer", protocol, written, mirror_policy(route), **copied[protocol])
            entries[f"{protocol}:infer:{route.model}"] = inferred
            for name in route.exposed:
                entries[f"{protocol}:infer:{name}"] = self._split("network", protocol, written, {}, **limited)
        return entries

    def cluster_entry(self, upstream: Upstream, **options: Json) -> Json:
        """Return the entry that sends all requests to one cluster."""
        action = {"cluster": upstream.name, "timeout": f"{self.timeout_s:.3f}s"}
        return _entry(route=action, **{**_options({}, _restart(RESTART_S)), **options})

    def _split(self, purpose: Purpose, protocol: Protocol, route: Route, more: Json, **options: Json) -> Json:
        parts = [
            {"name": name, "weight": weight, "response_headers_to_add": _response_headers(share)}
            for share, name, weight in weighted_clusters(route, purpose, protocol)
        ]
        clusters = {"clusters": parts, "runtime_key_prefix": _weights_prefix(route), **split_options(route)}
        action = {"weighted_clusters": clusters, "timeout": f"{self.timeout_s:.3f}s", **hash_policy(route), **more}
        return _entry(route=action, **server_headers(route), **options)


def encode_entries(entries: Mapping[str, Json]) -> bytes:
    """Encode entries of the table; the entries of several models are joined by joining their bytes."""
    return encode(parse_json(ROUTE_MAP, {"map": entries}))


def encode_routes(
    entries: Iterable[bytes],
    *,
    timeout_s: float,
    restricted: bool = False,
    metrics: bool = False,
    documents: Mapping[str, str] | None = None,
    loopback: bool = False,
) -> bytes:
    """Encode the route configuration of the public listener: these encoded entries, and those about servers.

    Where some model is `restricted` to callers, none learns the names of all models. With
    `metrics` there is a cluster that answers `/metrics`. The `documents`, by path, are answered as they are.
    With `loopback` only requests to a host of that kind are answered: web pages come by names of their own.
    """
    rendered = _route_configuration(timeout_s, documents or {}, restricted=restricted, metrics=metrics)
    configuration = parse_json(ROUTE_CONFIGURATION, rendered)
    path = ("virtual_hosts", "matcher", "matcher_tree", "exact_match_map")
    others: Json = {}
    if loopback:
        configuration.virtual_hosts[0].domains[:] = _LOOPBACK
        refused = _entry(direct_response={"status": 421, "body": {"inline_string": _OTHER_HOST}})
        others["virtual_hosts"] = [{"name": "others", "domains": ["*"], "matcher": {"on_no_match": refused}}]
    # Joined bytes are a message with both lists.
    return encode_with(configuration, path, b"".join(entries)) + encode(parse_json(ROUTE_CONFIGURATION, others))


def _route_configuration(timeout_s: float, documents: Mapping[str, str], *, restricted: bool, metrics: bool) -> Json:
    key = {"@type": f"{TYPES}.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": ROUTE_HEADER}
    servers = _server_entries(RouteTable(timeout_s))
    if metrics:
        servers[METRICS_PATH] = _entry(route={"cluster": METRICS_CLUSTER, "timeout": f"{timeout_s:.3f}s"})
    for path, text in documents.items():
        servers[path] = _entry(direct_response={"status": 200, "body": {"inline_string": text}})
    # By default Envoy refuses bodies of more than 4096 bytes.
    most = max((len(text.encode()) for text in documents.values()), default=0)
    table = {"map": {key: entry for key, entry in servers.items() if not (restricted and key in _OF_ALL_MODELS)}}
    tree = {"input": {"name": "route key", "typed_config": key}, "exact_match_map": table}
    not_found = _entry(direct_response={"status": 404, "body": {"inline_string": "not found"}})
    matcher = {"matcher_tree": tree, "on_no_match": not_found}
    return {
        "@type": f"{TYPES}.config.route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "request_headers_to_remove": [ROUTE_HEADER, MODEL_HEADER],
        **({"max_direct_response_body_size_bytes": most} if documents else {}),
        "virtual_hosts": [
            {
                "name": ROUTES_NAME,
                "domains": ["*"],
                "matcher": matcher,
                "retry_policy": _CALLERS_RETRY,
                "request_body_buffer_limit": _MOST_KEPT_BYTES,
                "typed_per_filter_config": access_of_route((_ANYONE,)) if restricted else {},
            }
        ],
    }


def render_internal_routes(*, timeout_s: float) -> Json:
    """Return the route configuration of the internal listener, which does not depend on the plan.

    There the key from route_key.lua is the name of a cluster; if the cluster does not exist, the model has no such
    group.
    """
    action = {
        "cluster_header": ROUTE_HEADER,
        "cluster_not_found_response_code": "NOT_FOUND",
        "timeout": f"{timeout_s:.3f}s",
    }
    return {
        "name": "internal",
        "request_headers_to_remove": [ROUTE_HEADER, MODEL_HEADER, GROUP_HEADER],
        "virtual_hosts": [
            {
                "name": "internal",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": action, **_options({}, _restart(RESTART_S))}],
                "retry_policy": _RETRY,
                "request_body_buffer_limit": _MOST_KEPT_BYTES,
            }
        ],
    }


def changed_weights(route: Route, written: Route) -> dict[str, int]:
    """Return the weights of `route` by key, or none if `written`, a route to the same groups, has the same weights."""
    if [share.weight for share in route.shares] == [share.weight for share in written.shares]:
        return {}
    purposes: tuple[Purpose, ...] = ("infer", "network") if route.exposed else ("infer",)
    prefix = _weights_prefix(written)
    return {
        f"{prefix}.{name}": weight
        for purpose in purposes
        for protocol in PROTOCOLS
        for _, name, weight in weighted_clusters(route, purpose, protocol)
    }


def encode_weights(values: Mapping[str, int]) -> bytes:
    """Encode the layer of Envoy's runtime that holds these weights."""
    return encode(parse_json(RUNTIME, {"name": WEIGHTS_NAME, "layer": dict(values)}))


def read_weights(encoded: Iterable[bytes]) -> dict[str, int]:
    """Return the weights that were encoded; none if there is no layer."""
    layers = [to_json(parse(RUNTIME, content)).get("layer", {}) for content in encoded]
    return {key: int(weight) for layer in layers for key, weight in layer.items()}


def _weights_prefix(written: Route) -> str:
    # It depends on the weights in the table, because table and weights reach Envoy one after the other: keys for one
    # table then never match in another.
    named = json.dumps([[share.group, share.weight] for share in written.shares])
    return f"segserve.{hashlib.sha256(named.encode()).hexdigest()[:8]}"


def _options(filters: Json, metadata: Json) -> dict[str, Json]:
    """Return the options of an entry: its configuration by filter, and what filters read of it."""
    options = {"typed_per_filter_config": filters, "metadata": {"filter_metadata": metadata} if metadata else {}}
    return {key: value for key, value in options.items() if value}


def retry_headers(delay_s: int) -> dict[str, str]:
    """Return the headers by which clients over gRPC know when to ask again."""
    return {"retry-after": str(delay_s), "grpc-retry-pushback-ms": str(1000 * delay_s)}


def _restart(delay_s: int) -> Json:
    """Return the metadata of which the answer's headers are made if no server answers."""
    return {RESTART_METADATA: retry_headers(delay_s)}


def _entry(**action: Any) -> Json:
    route = {"@type": f"{TYPES}.config.route.v3.Route", "match": {"prefix": "/"}, **action}
    return {"action": {"name": "route", "typed_config": route}}


def _response_headers(share: Share) -> list[Json]:
    headers = {REVISION_HEADER: share.revision, GROUP_HEADER: share.group}
    if share.device is not None:
        headers[DEVICE_HEADER] = share.device
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


def _server_entries(table: RouteTable) -> dict[str, Json]:
    methods = [f"/{SERVICE}/{method}" for method in SERVER_METHODS]
    http, grpc = (table.cluster_entry(Upstream("server", protocol)) for protocol in PROTOCOLS)
    return dict.fromkeys(SERVER_PATHS, http) | dict.fromkeys(methods, grpc)
