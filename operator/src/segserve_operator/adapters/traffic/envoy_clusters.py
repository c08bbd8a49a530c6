"""Renders Envoy's clusters: one for each model, group, protocol and purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal, TypeAlias, cast

from segserve_operator.core.traffic import Endpoint, Route, Share, twin_of

Json: TypeAlias = dict[str, Any]
Protocol: TypeAlias = Literal["http", "grpc"]
Purpose: TypeAlias = Literal["infer", "network", "aside", "server"]

TYPES: Final = "type.googleapis.com/envoy"
PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "grpc")
_PURPOSES: Final[tuple[Purpose, ...]] = ("infer", "aside")
_PURPOSES_EXPOSED: Final[tuple[Purpose, ...]] = (*_PURPOSES, "network")
# High enough never to be what limits a request: Triton's own queues do that, and say so.
_LIMIT: Final = 8192
# As many as may be in flight at a server that dies: only what got no answer is asked again, and only once.
_RETRIES: Final = 64
_HTTP_OPTIONS: Final[Mapping[Protocol, Json]] = {
    "http": {"http_protocol_options": {}},
    # A node that went away ends no connection; a busy server answers this at once all the same.
    "grpc": {"http2_protocol_options": {"connection_keepalive": {"interval": "15s", "timeout": "15s"}}},
}
_TCP_KEEPALIVE: Final = {"tcp_keepalive": {"keepalive_time": 15, "keepalive_interval": 5, "keepalive_probes": 3}}
# Servers that do not answer at all are left out for a while: a server's errors are answers, and evidence.
_OUTLIERS: Final = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 3,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
    "base_ejection_time": "5s",
    "max_ejection_time": "30s",
    "max_ejection_percent": 50,
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a cluster is for: requests of one purpose and protocol to a model in a group.

    Only `infer` is evidence on a model: `network` is the exposed bare network, `aside` what callers ask about a model
    (metadata, configuration, readiness) and all that comes through the internal listener, `server` the questions
    that are about no model (`model` and `group` are empty then).
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


def clusters_of(route: Route) -> dict[str, Json]:
    """Return by name the clusters of one model: of each share, whatever its weight."""
    found: dict[str, Json] = {}
    for share in route.shares:
        for purpose in _PURPOSES_EXPOSED if route.exposed else _PURPOSES:
            limit = share.max_requests if purpose in ("infer", "network") else _LIMIT
            for group, protocol in product(names_of(share, purpose), PROTOCOLS):
                cluster = _cluster(Upstream(purpose, protocol, route.model, group), share.endpoints, limit)
                found[cluster["name"]] = cluster
    return found


def names_of(share: Share, purpose: Purpose) -> tuple[str, ...]:
    """Return the names of groups that a share's requests of one purpose are split over, in equal parts."""
    return (share.group, twin_of(share.group)) if share.twin and purpose == "infer" else (share.group,)


def weighted(route: Route, purpose: Purpose, protocol: Protocol) -> list[tuple[Share, str, int]]:
    """Return a model's shares of one purpose, each with the name of a cluster and its weight."""
    parts = 2 if purpose == "infer" and any(share.twin for share in route.shares) else 1
    return [
        (share, Upstream(purpose, protocol, route.model, name).name, share.weight * parts // len(names))
        for share in route.shares
        for names in (names_of(share, purpose),)
        for name in names
    ]


def clusters_of_servers(servers: Sequence[Endpoint]) -> dict[str, Json]:
    """Return by name the clusters that answer what is asked about no model."""
    clusters = [_cluster(Upstream("server", protocol), servers, _LIMIT) for protocol in PROTOCOLS]
    return {cluster["name"]: cluster for cluster in clusters}


def has_endpoints(cluster: Json) -> bool:
    """Tell whether a cluster names any server."""
    return bool(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"])


def heaviest(route: Route) -> Share:
    """Return the share that answers what is asked about a model."""
    return max(route.shares, key=lambda share: share.weight)


def socket_address(host: str, port: int) -> Json:
    """Return an Envoy address."""
    return {"socket_address": {"address": host, "port_value": port}}


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
                    "retry_budget": {"budget_percent": {"value": 20.0}, "min_retry_concurrency": _RETRIES},
                }
            ]
        },
        "upstream_connection_options": _TCP_KEEPALIVE,
        **({"outlier_detection": _OUTLIERS} if upstream.purpose in ("infer", "network") else {}),
        "load_assignment": {
            "cluster_name": upstream.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}],
        },
    }
