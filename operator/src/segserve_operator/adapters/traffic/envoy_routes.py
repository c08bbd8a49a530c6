"""Renders Envoy's routes from a traffic plan: one table, looked up by the key that route_key.lua writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from segserve_operator.adapters.traffic.envoy_clusters import (
    PROTOCOLS,
    TYPES,
    Json,
    Protocol,
    Purpose,
    Upstream,
    heaviest,
    weighted,
)
from segserve_operator.adapters.traffic.envoy_weights import weights_prefix
from segserve_operator.core.traffic import Route, Share

ROUTES_NAME: Final = "models"
ROUTE_HEADER: Final = "x-segserve-route"
MODEL_HEADER: Final = "x-segserve-model"
REVISION_HEADER: Final = "x-segserve-revision"
GROUP_HEADER: Final = "x-segserve-group"
SERVICE: Final = "inference.GRPCInferenceService"
SERVER_PATHS: Final = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats")
SERVER_METHODS: Final = ("ServerLive", "ServerReady", "ServerMetadata", "ModelStatistics")
# An inference changes nothing, so that it may be asked once more where no answer had begun; another server is
# preferred, and the clusters' retry budget keeps a failing group from doubling its own load.
_RETRY: Final = {
    "retry_on": "connect-failure,refused-stream,reset",
    "num_retries": 1,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": f"{TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }
    ],
    # The server that just failed has the fewest requests, and is chosen again and again.
    "host_selection_retry_max_attempts": 100,
}
# A server whose step has died answers 500 (INTERNAL) until its agent has seen that. Our own requests are not asked
# again for it: a revision that fails now and then has to show.
_CALLERS_RETRY: Final = {
    **_RETRY,
    "retry_on": f"{_RETRY['retry_on']},retriable-status-codes,internal",
    "retriable_status_codes": [500],
}


@dataclass(frozen=True, slots=True)
class Table:
    """Renders entries of the table of routes. `timeout_s` bounds one request, from its last byte in to its answer's.

    Entries name weights, and where newer ones are looked up first (`envoy_weights`): weights change far more often
    than anything else here, and Envoy reads a table whole.
    """

    timeout_s: float

    def entries_of(self, route: Route, written: Route) -> dict[str, Json]:
        """Return the entries of one model; `written` is the same route with the weights that they are to name."""
        found: dict[str, Json] = {}
        for protocol in PROTOCOLS:
            about = self.to(Upstream("aside", protocol, route.model, heaviest(route).group))
            found |= {f"{protocol}:about:{name}": about for name in (route.model, *route.steps, *route.exposed)}
            found[f"{protocol}:infer:{route.model}"] = self._split("infer", protocol, written)
            found |= {f"{protocol}:infer:{name}": self._split("network", protocol, written) for name in route.exposed}
        return found

    def to(self, upstream: Upstream) -> Json:
        """Return the entry that sends everything to one cluster."""
        return _entry(route={"cluster": upstream.name, "timeout": f"{self.timeout_s:.3f}s"})

    def _split(self, purpose: Purpose, protocol: Protocol, route: Route) -> Json:
        parts = [
            {"name": name, "weight": weight, "response_headers_to_add": _told(share)}
            for share, name, weight in weighted(route, purpose, protocol)
        ]
        clusters = {"clusters": parts, "runtime_key_prefix": weights_prefix(route)}
        return _entry(route={"weighted_clusters": clusters, "timeout": f"{self.timeout_s:.3f}s"})


def render_routes(entries: Mapping[str, Json], *, timeout_s: float) -> Json:
    """Return the route configuration with these entries for models and those of the servers."""
    key = {"@type": f"{TYPES}.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": ROUTE_HEADER}
    table = {**entries, **_server_entries(Table(timeout_s))}
    tree = {"input": {"name": "route key", "typed_config": key}, "exact_match_map": {"map": table}}
    not_found = _entry(direct_response={"status": 404, "body": {"inline_string": "not found"}})
    matcher = {"matcher_tree": tree, "on_no_match": not_found}
    return {
        "@type": f"{TYPES}.config.route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "request_headers_to_remove": [ROUTE_HEADER, MODEL_HEADER],
        "virtual_hosts": [{"name": ROUTES_NAME, "domains": ["*"], "matcher": matcher, "retry_policy": _CALLERS_RETRY}],
    }


def render_internal_routes(*, timeout_s: float) -> Json:
    """Return the internal listener's route configuration, which is the same whatever the plan.

    The key that route_key.lua writes is the name of a cluster there, and a cluster that is not there says that the
    model has no such group.
    """
    to = {
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
                "routes": [{"match": {"prefix": "/"}, "route": to}],
                "retry_policy": _RETRY,
            }
        ],
    }


def _entry(**what: Any) -> Json:
    route = {"@type": f"{TYPES}.config.route.v3.Route", "match": {"prefix": "/"}, **what}
    return {"action": {"name": "route", "typed_config": route}}


def _told(share: Share) -> list[Json]:
    headers = {REVISION_HEADER: share.revision, GROUP_HEADER: share.group}
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


def _server_entries(table: Table) -> dict[str, Json]:
    methods = [f"/{SERVICE}/{method}" for method in SERVER_METHODS]
    http, grpc = (table.to(Upstream("server", protocol)) for protocol in PROTOCOLS)
    return dict.fromkeys(SERVER_PATHS, http) | dict.fromkeys(methods, grpc)
