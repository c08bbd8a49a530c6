"""Renders Envoy's routes from a traffic plan: one table, looked up by the key that route_key.lua writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from segserve_operator.adapters.traffic.envoy_clusters import PROTOCOLS, TYPES, Upstream, heaviest
from segserve_operator.core.traffic import TrafficPlan

if TYPE_CHECKING:
    from segserve_operator.adapters.traffic.envoy_clusters import Json, Protocol, Purpose
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
    "host_selection_retry_max_attempts": 20,
}
_PLAN: Final = TypeAdapter(TrafficPlan)
_METADATA: Final = "segserve"


def render_routes(plan: TrafficPlan, *, timeout_s: float) -> Json:
    """Return the route configuration for `plan`, which it carries as metadata; `plan_of` reads that back.

    `timeout_s` bounds one request, from its last byte in to its answer's last byte.
    """
    action = _Actions(timeout_s)
    table: dict[str, Json] = {}
    for protocol in PROTOCOLS:
        for route in plan.routes:
            table |= _model_entries(action, protocol, route)
        table |= _server_entries(action, protocol)
    key = {"@type": f"{TYPES}.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": ROUTE_HEADER}
    not_found = action.route(direct_response={"status": 404, "body": {"inline_string": "not found"}})
    tree = {"input": {"name": "route key", "typed_config": key}, "exact_match_map": {"map": table}}
    matcher = {"matcher_tree": tree, "on_no_match": not_found}
    return {
        "@type": f"{TYPES}.config.route.v3.RouteConfiguration",
        "name": ROUTES_NAME,
        "metadata": {"filter_metadata": {_METADATA: {"plan": _PLAN.dump_python(plan, mode="json")}}},
        "request_headers_to_remove": [ROUTE_HEADER, MODEL_HEADER],
        "virtual_hosts": [{"name": ROUTES_NAME, "domains": ["*"], "matcher": matcher, "retry_policy": _RETRY}],
    }


def plan_of(routes: Json) -> TrafficPlan:
    """Return the plan that a rendered route configuration (or Envoy's dump of one) carries."""
    return _PLAN.validate_python(routes["metadata"]["filter_metadata"][_METADATA]["plan"])


class _Actions:
    """Builds the table's entries."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = f"{timeout_s:.3f}s"

    def route(self, **what: Any) -> Json:
        route = {"@type": f"{TYPES}.config.route.v3.Route", "match": {"prefix": "/"}, **what}
        return {"action": {"name": "route", "typed_config": route}}

    def to(self, upstream: Upstream) -> Json:
        return self.route(route={"cluster": upstream.name, "timeout": self._timeout})

    def split(self, purpose: Purpose, protocol: Protocol, route: Route) -> Json:
        weighted = [
            {
                "name": Upstream(purpose, protocol, route.model, share.group).name,
                "weight": share.weight,
                "response_headers_to_add": _told(share),
            }
            for share in route.shares
            if share.weight
        ]
        return self.route(route={"weighted_clusters": {"clusters": weighted}, "timeout": self._timeout})


def _told(share: Share) -> list[Json]:
    headers = {REVISION_HEADER: share.revision, GROUP_HEADER: share.group}
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


def _model_entries(action: _Actions, protocol: Protocol, route: Route) -> dict[str, Json]:
    about = action.to(Upstream("about", protocol, route.model, heaviest(route).group))
    entries = {f"{protocol}:about:{name}": about for name in (route.model, *route.steps, *route.exposed)}
    entries[f"{protocol}:infer:{route.model}"] = action.split("infer", protocol, route)
    for name in route.exposed:
        entries[f"{protocol}:infer:{name}"] = action.split("network", protocol, route)
    return entries


def _server_entries(action: _Actions, protocol: Protocol) -> dict[str, Json]:
    keys = SERVER_PATHS if protocol == "http" else [f"/{SERVICE}/{method}" for method in SERVER_METHODS]
    return dict.fromkeys(keys, action.to(Upstream("server", protocol)))
