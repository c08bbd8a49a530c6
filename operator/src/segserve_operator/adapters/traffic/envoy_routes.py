"""Renders Envoy's routes: one table, whose keys route_key.lua computes, and the weights that override the table's.

Limits of models are Envoy's `local_ratelimit`, with a bucket of tokens for each model and each caller. The filter's
configuration is a file that Envoy watches (ECDS), apart from the routes: they change far more often, and with a new
configuration all buckets are full again. A route says which model it is of, so that both protocols, all groups of a
rollout and the exposed network share the model's buckets.

With affinity, requests of one id go to one revision and one server. A filter writes a number for the revision and a
text for the server, for requests that have an id. Envoy takes the number modulo the sum of a split's weights, and
hashes the text for the server. Two values, since an id's place in the order of a rollout changes with each rollout, and
its server must not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segserve_builder.spec.names import CALLER_HEADER
from segserve_operator.adapters.traffic.envoy_auth import access_of_route
from segserve_operator.adapters.traffic.envoy_clusters import (
    PROTOCOLS,
    SERVER_KEY,
    TYPES,
    Protocol,
    Purpose,
    Upstream,
    heaviest,
    weighted_clusters,
)
from segserve_operator.adapters.traffic.envoy_extensions import (
    CALLER,
    encode_extension,
    extension,
    lua_filter,
    watched_extension,
)
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
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.core.traffic import RESTART_S, AccessRule, Callers, RequestRate, Route, Share

LIMITS_NAME: Final = "segserve.limits"
"""Name of the filter, and of the metadata of a route that has the model's name."""
RETRY_AFTER_S: Final = 1
"""The time that refused callers have to wait: buckets are filled once a second at least."""
MAX_CALLERS: Final = 10_000
"""Callers that each have a bucket of a model; a new caller gets the bucket of the one that has been away longest."""
DETAILS: Final = "local_rate_limited"
"""Code details of the response to a request beyond a limit."""
_LIMITS_TYPE: Final = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_MODEL: Final = "model"
_LIMIT: Final = "limit"
_REQUESTS: Final = "requests"
_BYTES: Final = "bytes"
_MOST: Final = 2**32 - 1
_MEGABYTE: Final = 10**6
# The request's Content-Length, or what a gRPC message has had. A bucket refuses a request of no tokens at all.
_SIZE: Final = "%CEL(request.size + 1)%"
SERVER_HEADER: Final = "x-segserve-server"
"""Header of responses that names the server, in pools with affinity."""
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
"""Metadata of a route: the retry headers of the answer if no server answers."""
RETRY_AFTER: Final = "retry-after"
RETRY_PUSHBACK: Final = "grpc-retry-pushback-ms"
# Also if nobody is known, so that it stands beside a parameter of that name which a caller writes into the body.
_CALLER_HEADER: Final = {
    "header": {"key": CALLER_HEADER, "value": f"%DYNAMIC_METADATA({CALLER}:id)%"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    "keep_empty_value": True,
}
_LOOPBACK: Final = [f"{host}{port}" for host in ("localhost", "127.0.0.1", "[::1]") for port in ("", ":*")]
_OTHER_HOST: Final = "without --auth this gateway answers to Host: localhost, 127.0.0.1 and [::1] alone"
# A body is kept until its response begins, to be sent again; for a larger one, the client is asked to send it again. By
# default Envoy keeps no more than a connection's buffer, which photographs exceed.
_MOST_KEPT_BYTES: Final = 8 * 2**20
# A server with a dead Python step responds with 500 (INTERNAL) until its agent notices. segserve's own requests are not
# retried on it: a revision that fails sometimes has to be seen failing. One that ends has unloaded its models some time
# before it closes its ports, and one that was restarted has not loaded them yet. faults.lua distinguishes that from a
# caller's fault, such as a version that does not exist, which must not be retried: each retry counts as a failed
# attempt.
_CALLERS_RETRY: Final = {
    **_RETRY,
    "retry_on": f"{_RETRY['retry_on']},retriable-status-codes,internal,retriable-headers",
    "retriable_status_codes": [500],
    "retriable_headers": [{"name": RETRY_AFTER, "present_match": True}],
}


def limits_filter(path: Path) -> Json:
    """Return the filter, whose configuration is in a file; it comes after the one that finds a request's route."""
    return watched_extension(LIMITS_NAME, _LIMITS_TYPE, path)


def limits_of_route(route: Route) -> Json:
    """Return the part of an inference route's metadata that says whose limits hold; empty without limits."""
    if route.limits is None:
        return {}
    return {LIMITS_NAME: {_MODEL: route.model}}


def encode_limits(routes: Iterable[Route], *, max_request_bytes: int) -> tuple[str, bytes]:
    """Return (version, content) of the file: the limits of these models."""
    descriptors = [each for route in routes for each in _descriptors(route, max_request_bytes)]
    share = {"default_value": {"numerator": 100 if descriptors else 0}}
    config = {
        "@type": f"{TYPES}.{_LIMITS_TYPE}",
        "stat_prefix": "limits",
        "filter_enabled": share,
        "filter_enforced": share,
        # A model without limits has no bucket of its own, and this one is never empty.
        "token_bucket": _bucket(_MOST, _MOST),
        "always_consume_default_token_bucket": False,
        "max_dynamic_descriptors": MAX_CALLERS,
        "rate_limited_as_resource_exhausted": True,
        "response_headers_to_add": [{"header": {"key": RETRY_AFTER, "value": str(RETRY_AFTER_S)}}],
        "rate_limits": [
            {"actions": [_metadata(LIMITS_NAME, "model", _MODEL, "ROUTE_ENTRY"), _named(kind), *callers], **cost}
            for kind, cost in ((_REQUESTS, {}), (_BYTES, {"hits_addend": {"format": _SIZE}}))
            for callers in ((), (_metadata(CALLER, "name", "caller", "DYNAMIC"),), (_is_unknown(), _address()))
        ],
        "descriptors": descriptors,
    }
    return encode_extension(LIMITS_NAME, config)


def read_limits_version(content: bytes) -> str:
    """Return the version of what `encode_limits` gave, empty for anything else."""
    try:
        return str(json.loads(content)["version_info"])
    except (ValueError, LookupError, TypeError):
        return ""


def _descriptors(route: Route, max_request_bytes: int) -> Iterator[Json]:
    if route.limits is None:
        return
    # A key without a value stands for each caller.
    own = ([("caller", "")], [("anonymous", "true"), ("address", "")])
    for rate, callers in ((route.limits.total, ([],)), (route.limits.per_caller, own)):
        for kind, bucket in _buckets(rate, max_request_bytes):
            for entries in callers:
                pairs = [(_MODEL, route.model), (_LIMIT, kind), *entries]
                named = [{"key": key, **({"value": value} if value else {})} for key, value in pairs]
                yield {"entries": named, "token_bucket": bucket}


def _buckets(rate: RequestRate, max_request_bytes: int) -> Iterator[tuple[str, Json]]:
    if rate.requests_per_s is not None:
        yield _REQUESTS, _bucket(rate.requests_per_s, rate.requests_per_s)
    if rate.megabytes_per_s is not None:
        per_s = rate.megabytes_per_s * _MEGABYTE
        # One request needs room for all of it.
        yield _BYTES, _bucket(per_s, max(per_s, max_request_bytes + 1))


def _bucket(per_s: int, most: int) -> Json:
    return {"max_tokens": most, "tokens_per_fill": per_s, "fill_interval": "1s"}


def _named(kind: str) -> Json:
    return {"generic_key": {"descriptor_key": _LIMIT, "descriptor_value": kind}}


def _metadata(namespace: str, key: str, name: str, source: str) -> Json:
    path = {"key": namespace, "path": [{"key": key}]}
    return {"metadata": {"metadata_key": path, "descriptor_key": name, "source": source}}


def _is_unknown() -> Json:
    known = f"'{CALLER}' in metadata.filter_metadata && 'name' in metadata.filter_metadata['{CALLER}']"
    expression = extension(
        "envoy.rate_limit_descriptors.expr",
        "extensions.rate_limit_descriptors.expr.v3.Descriptor",
        descriptor_key="anonymous",
        text=f"!({known})",
    )
    return {"extension": expression}


def _address() -> Json:
    # That of the connection: what a caller says of himself in x-forwarded-for does not count.
    return {"extension": extension("address", "extensions.matching.common_inputs.network.v3.DirectSourceIPInput")}


def affinity_filters(affinity: SessionAffinity | None) -> list[Json]:
    """Return the filter that finds a request's id; it comes after the filters that find the route and the caller."""
    if affinity is None:
        return []
    header, cookie = (affinity.header or "").lower(), affinity.cookie or ""
    return [lua_filter("affinity.lua", HEADER=header, COOKIE=cookie, CALLER=affinity.caller)]


def salt_of_route(route: Route) -> Json:
    """Return the part of an inference route's metadata that the filter reads; empty without affinity."""
    return {} if route.affinity is None else {"envoy.filters.http.lua": {"salt": route.affinity.salt}}


def split_options(route: Route) -> Json:
    """Return what makes a split follow the filter's number; requests without one are split at random."""
    return {} if route.affinity is None else {"header_name": "x-segserve-part"}


def hash_policy(route: Route) -> Json:
    """Return what makes the choice of a server follow the id; requests without one go to any server."""
    return {} if route.affinity is None else {"hash_policy": [{"header": {"header_name": "x-segserve-id"}}]}


def server_headers(route: Route) -> Json:
    """Return the header of responses that names the server, so that callers can see when it is another one."""
    if route.affinity is None:
        return {}
    value = f"%UPSTREAM_METADATA(envoy.lb:{SERVER_KEY})%"
    header = {"header": {"key": SERVER_HEADER, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {"response_headers_to_add": [header]}


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

    If some model is `restricted` to callers, no caller learns the names of all models. With `metrics` there is a
    cluster that answers `/metrics`. The `documents`, by path, are answered as they are. With `loopback` only requests
    to a host of that kind are answered: web pages come by names of their own.
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
        "request_headers_to_add": [_CALLER_HEADER],
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
    """Return the headers that tell clients over gRPC when to retry."""
    return {RETRY_AFTER: str(delay_s), RETRY_PUSHBACK: str(1000 * delay_s)}


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
