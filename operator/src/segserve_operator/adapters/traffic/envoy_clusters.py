"""Renders Envoy's clusters: one for each model, group, protocol and purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

Json: TypeAlias = dict[str, Any]
Protocol: TypeAlias = Literal["http", "grpc"]
Purpose: TypeAlias = Literal["infer", "about", "network", "server"]

TYPES: Final = "type.googleapis.com/envoy"
PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "grpc")
# High enough never to be what limits a request: Triton's own queues do that, and say so.
_LIMIT: Final = 8192
_HTTP_OPTIONS: Final[Mapping[Protocol, Json]] = {
    "http": {"http_protocol_options": {}},
    "grpc": {"http2_protocol_options": {}},
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a cluster is for: requests of one purpose and protocol to a model in a group.

    Only `infer` is evidence on a model: `about` is metadata, configuration and readiness, `network` the exposed
    bare network, `server` the questions that are about no model (`model` and `group` are empty then).
    """

    purpose: Purpose
    protocol: Protocol
    model: str = ""
    group: str = ""

    @property
    def name(self) -> str:
        """The cluster's name; `parse` reads it back."""
        return "/".join((self.model, self.group, self.purpose, self.protocol))

    @classmethod
    def parse(cls, name: str) -> Upstream:
        """Return what the cluster called `name` is for."""
        model, group, purpose, protocol = name.split("/")
        return cls(cast("Purpose", purpose), cast("Protocol", protocol), model, group)


def render_clusters(plan: TrafficPlan) -> dict[str, Json]:
    """Return by name every cluster that the plan's routes refer to."""
    clusters = (_cluster(upstream, endpoints, limit) for upstream, endpoints, limit in _upstreams(plan))
    return {cluster["name"]: cluster for cluster in clusters}


def has_endpoints(cluster: Json) -> bool:
    """Tell whether a rendered cluster names any server."""
    return bool(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"])


def heaviest(route: Route) -> Share:
    """Return the share that answers what is asked about a model."""
    return max(route.shares, key=lambda share: share.weight)


def socket_address(host: str, port: int) -> Json:
    """Return an Envoy address."""
    return {"socket_address": {"address": host, "port_value": port}}


def _upstreams(plan: TrafficPlan) -> Iterator[tuple[Upstream, Sequence[Endpoint], int]]:
    for protocol in PROTOCOLS:
        yield Upstream("server", protocol), plan.servers, _LIMIT
        for route in plan.routes:
            about = heaviest(route)
            yield Upstream("about", protocol, route.model, about.group), about.endpoints, _LIMIT
            for share in route.shares:
                yield Upstream("infer", protocol, route.model, share.group), share.endpoints, share.max_requests
                if route.exposed:
                    yield Upstream("network", protocol, route.model, share.group), share.endpoints, share.max_requests


def _cluster(upstream: Upstream, endpoints: Sequence[Endpoint], max_requests: int) -> Json:
    addresses = [
        socket_address(at.host, at.grpc_port if upstream.protocol == "grpc" else at.http_port) for at in endpoints
    ]
    return {
        "@type": f"{TYPES}.config.cluster.v3.Cluster",
        "name": upstream.name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": _HTTP_OPTIONS[upstream.protocol],
            }
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _LIMIT,
                    "max_pending_requests": _LIMIT,
                    "max_requests": max_requests,
                    "retry_budget": {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 10},
                }
            ]
        },
        "load_assignment": {
            "cluster_name": upstream.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}],
        },
    }
