"""Renders Envoy's clusters: one for each model, group, protocol and purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from socket import IPPROTO_TCP
from typing import Final, Literal, TypeAlias, cast

from segserve_operator.adapters.traffic.envoy_messages import CLUSTER, LOCALITY, Json, encode, parse, parse_json
from segserve_operator.core.traffic import Endpoint, Route, Share

Protocol: TypeAlias = Literal["http", "grpc"]
Purpose: TypeAlias = Literal["infer", "network", "aside", "server"]

TYPES: Final = "type.googleapis.com/envoy"
PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "grpc")
_PURPOSES: Final[tuple[Purpose, ...]] = ("infer", "aside")
_PURPOSES_EXPOSED: Final[tuple[Purpose, ...]] = (*_PURPOSES, "network")
SERVER_KEY: Final = "hash_key"
"""Key of a server's metadata, for `envoy.lb`, by which it is hashed instead of its address."""
# So high that it never limits a request: Triton's own queues do that, with an error that says so.
_LIMIT: Final = 8192
# As many as may be in flight at a server that dies: only requests without a response are retried, and only once.
_RETRIES: Final = 64
_HTTP_OPTIONS: Final[Mapping[Protocol, Json]] = {
    "http": {"http_protocol_options": {}},
    # A node that disappears closes no connection: one that was idle is pinged before its next request, others by TCP.
    # If pinged at intervals, gRPC's server ends an idle connection after a minute ("Too many pings"), and with it a
    # request that comes just then.
    "grpc": {"http2_protocol_options": {"connection_keepalive": {"connection_idle_interval": "15s", "timeout": "15s"}}},
}
_TCP_KEEPALIVE: Final = {"tcp_keepalive": {"keepalive_time": 5, "keepalive_interval": 2, "keepalive_probes": 3}}
# Linux repeats unacknowledged data for a quarter of an hour, and meanwhile sends no keepalives. After 20 s the
# connection fails instead, and its requests, which have no response, are retried at another server. A frozen server's
# kernel acknowledges, but only until its buffer is full: a large body waits for it no longer than this either.
_TCP_USER_TIMEOUT: Final = {
    # 18 is its name on Linux, where Envoy runs; Python has no name for it on other systems.
    "socket_options": [{"level": IPPROTO_TCP, "name": 18, "int_value": 20_000}]
}
# Only servers that do not respond at all are ejected: a server's errors are responses, which rollouts have to see.
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
    """The requests that a cluster is for: of one purpose and protocol, to one model in one group.

    Purposes: `infer` is inference by callers, the only one that rollouts judge; `network` is inference on the exposed
    bare network; `aside` is metadata, configuration and readiness of a model, and everything from the internal
    listener; `server` is about no model (`model` and `group` are empty).
    """

    purpose: Purpose
    protocol: Protocol
    model: str = ""
    group: str = ""

    @property
    def name(self) -> str:
        """Name of the cluster; `parse` is its inverse."""
        return "/".join((self.model, self.group, self.purpose, self.protocol))

    @classmethod
    def parse(cls, name: str) -> Upstream:
        """Parse the name of a cluster."""
        model, group, purpose, protocol = name.split("/")
        return cls(cast("Purpose", purpose), cast("Protocol", protocol), model, group)

    @property
    def is_inference(self) -> bool:
        """Whether callers' inference requests go to it."""
        return self.purpose in ("infer", "network")


@dataclass(frozen=True, slots=True)
class EnvoyCluster:
    """The encoded configuration of a cluster; `usable` if it has a server."""

    content: bytes
    usable: bool


def route_clusters(route: Route) -> dict[str, EnvoyCluster]:
    """Return the clusters of one model by name: of each share, including shares of weight 0."""
    clusters: dict[str, EnvoyCluster] = {}
    for share in route.shares:
        for protocol in PROTOCOLS:
            for purpose in _PURPOSES_EXPOSED if route.exposed else _PURPOSES:
                upstream = Upstream(purpose, protocol, route.model, share.group)
                limit = share.max_requests if upstream.is_inference else _LIMIT
                sticks = route.affinity is not None and upstream.is_inference
                servers = _locality(share.endpoints, protocol, named=sticks)
                clusters[upstream.name] = _cluster(upstream, servers, limit, sticks=sticks)
    return clusters


def weighted_clusters(route: Route, purpose: Purpose, protocol: Protocol) -> list[tuple[Share, str, int]]:
    """Return (share, name of a cluster, its weight) for each cluster of one purpose and protocol of a model.

    An id keeps its revision as the weight of that revision grows if the order and the sum of the weights stay.
    """
    shares = route.shares
    if route.affinity is not None:
        last = route.affinity.last
        shares = tuple(sorted(shares, key=lambda share: (share.group == last, share.group)))
    return [(share, Upstream(purpose, protocol, route.model, share.group).name, share.weight) for share in shares]


def server_clusters(servers: tuple[Endpoint, ...]) -> dict[str, EnvoyCluster]:
    """Return the clusters for requests that are about no model, by name."""
    upstreams = [Upstream("server", protocol) for protocol in PROTOCOLS]
    return {up.name: _cluster(up, _locality(servers, up.protocol), _LIMIT) for up in upstreams}


def read_clusters(encoded: Iterable[bytes]) -> dict[str, EnvoyCluster]:
    """Return the clusters that were encoded, by name."""
    clusters: dict[str, EnvoyCluster] = {}
    for content in encoded:
        cluster = parse(CLUSTER, content)
        usable = any(servers.lb_endpoints for servers in cluster.load_assignment.endpoints)
        clusters[cluster.name] = EnvoyCluster(content, usable)
    return clusters


def heaviest(route: Route) -> Share:
    """Return the share with the largest weight, which answers requests for a model's metadata."""
    return max(route.shares, key=lambda share: share.weight)


def server_name(server: Endpoint) -> str:
    """Return what a server is called in responses: no address, and the same for both protocols."""
    return hashlib.sha256(f"{server.host}:{server.http_port}".encode()).hexdigest()[:12]


def socket_address(host: str, port: int) -> Json:
    """Return an Envoy address."""
    return {"socket_address": {"address": host, "port_value": port}}


def protocol_options(protocol: Protocol, **common: Json) -> Json:
    """Return how a cluster speaks a protocol, with other fields of Envoy's `HttpProtocolOptions`."""
    kind = "extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": f"{TYPES}.{kind}", **common, "explicit_http_config": _HTTP_OPTIONS[protocol]}
    return {f"envoy.{kind}": options}


def _cluster(upstream: Upstream, servers: bytes, max_requests: int, *, sticks: bool = False) -> EnvoyCluster:
    settings = _settings(upstream.protocol, max_requests, ejects=upstream.is_inference, sticks=sticks)
    cluster = parse(CLUSTER, settings)
    cluster.name = upstream.name
    cluster.load_assignment.cluster_name = upstream.name
    cluster.load_assignment.endpoints.add().ParseFromString(servers)
    return EnvoyCluster(encode(cluster), bool(servers))


@lru_cache(maxsize=256)
def _locality(servers: tuple[Endpoint, ...], protocol: Protocol, *, named: bool = False) -> bytes:
    # Many models have the same servers, so the encoded list is shared: rendering it takes longest of all.
    ports = [(at.host, at.grpc_port if protocol == "grpc" else at.http_port) for at in servers]
    addresses: list[Json] = [{"endpoint": {"address": socket_address(host, port)}} for host, port in ports]
    if named:
        for server, address in zip(servers, addresses, strict=True):
            address["metadata"] = {"filter_metadata": {"envoy.lb": {SERVER_KEY: server_name(server)}}}
    return encode(parse_json(LOCALITY, {"lb_endpoints": addresses}))


@lru_cache(maxsize=256)
def _settings(protocol: Protocol, max_requests: int, *, ejects: bool, sticks: bool) -> bytes:
    """Return the part of a cluster that depends neither on its name nor on its servers."""
    settings: Json = {
        "type": "STATIC",
        "connect_timeout": "1s",
        # By a hash, a server that leaves moves only its own ids; a request without an id goes to any server.
        "lb_policy": "MAGLEV" if sticks else "LEAST_REQUEST",
        "typed_extension_protocol_options": protocol_options(protocol),
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
        "upstream_bind_config": _TCP_USER_TIMEOUT,
        "upstream_connection_options": _TCP_KEEPALIVE,
        **({"outlier_detection": _OUTLIERS} if ejects else {}),
    }
    return encode(parse_json(CLUSTER, settings))
