"""Renders traffic plans incrementally, only the models that changed: a gateway may serve a thousand models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from segserve_operator.adapters.traffic.envoy_clusters import Json, has_endpoints, route_clusters, server_clusters
from segserve_operator.adapters.traffic.envoy_files import serialize
from segserve_operator.adapters.traffic.envoy_routes import RouteTable, changed_weights
from segserve_operator.core.traffic import Route, TrafficPlan


@dataclass(frozen=True, slots=True)
class EnvoyCluster:
    """The JSON text of a cluster; `usable` if it has a server."""

    text: str
    usable: bool


@dataclass(frozen=True, slots=True)
class RenderedRoute:
    """The configuration of one model.

    `entries` of the table contain the weights of the route `written`; `weights` override them. `early_weights` apply
    the route's weights to the former table, until Envoy has loaded the new one.
    """

    route: Route
    written: Route
    clusters: dict[str, EnvoyCluster]
    entries: dict[str, Json]
    weights: dict[str, int]
    early_weights: dict[str, int]


@dataclass(frozen=True, slots=True)
class EnvoyConfiguration:
    """The complete dynamic configuration. Parts that equal those of the one before it are the same objects."""

    plan: TrafficPlan
    models: dict[str, RenderedRoute] = field(default_factory=dict)
    clusters: dict[str, EnvoyCluster] = field(default_factory=dict)
    entries: dict[str, Json] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    early_weights: dict[str, int] = field(default_factory=dict)


def render(plan: TrafficPlan, before: EnvoyConfiguration | None, *, timeout_s: float) -> EnvoyConfiguration:
    """Return the configuration for `plan`; `before` is the one that Envoy follows now, or None if it is not known."""
    table = RouteTable(timeout_s)
    models_before = before.models if before is not None else {}
    configuration = EnvoyConfiguration(plan)
    configuration.clusters.update(_serialized(server_clusters(plan.servers)))
    for route in plan.routes:
        rendered = _rendered(route, models_before.get(route.model), table)
        configuration.models[route.model] = rendered
        configuration.clusters.update(rendered.clusters)
        configuration.entries.update(rendered.entries)
        configuration.weights.update(rendered.weights)
        configuration.early_weights.update(rendered.early_weights)
    return configuration


def usable_clusters(
    present: Mapping[str, EnvoyCluster], desired: Mapping[str, EnvoyCluster]
) -> dict[str, EnvoyCluster]:
    """Return clusters with which both the present routes and the desired ones reach servers."""
    return {**present, **{name: new for name, new in desired.items() if name not in present or new.usable}}


def read_clusters(resources: Iterable[Json]) -> dict[str, EnvoyCluster]:
    """Return the clusters in a file by name, given its resources."""
    return _serialized({resource["name"]: resource for resource in resources})


def _rendered(route: Route, before: RenderedRoute | None, table: RouteTable) -> RenderedRoute:
    if before is None:
        return RenderedRoute(
            route, route, _serialized(route_clusters(route)), table.route_entries(route, route), {}, {}
        )
    if before.route == route:
        return replace(before, early_weights=before.weights)
    clusters = _serialized(route_clusters(route))
    # The same objects as before, so that comparing whole configurations is cheap.
    clusters = before.clusters if clusters == before.clusters else clusters
    if _split_of(route) != _split_of(before.written):
        return RenderedRoute(route, route, clusters, table.route_entries(route, route), {}, {})
    # Only weights have changed: override them, without a new table, unless anything else in the entries differs.
    weights = changed_weights(route, before.written)
    shares = tuple(
        replace(new, weight=old.weight) for new, old in zip(route.shares, before.written.shares, strict=True)
    )
    written = replace(route, shares=shares)
    if table.route_entries(route, written) == before.entries:
        return RenderedRoute(route, written, clusters, before.entries, weights, weights)
    return RenderedRoute(route, route, clusters, table.route_entries(route, route), {}, weights)


def _split_of(route: Route) -> list[tuple[str, str, bool]]:
    return [(share.group, share.revision, share.shadow) for share in route.shares]


def _serialized(clusters: dict[str, Json]) -> dict[str, EnvoyCluster]:
    return {name: EnvoyCluster(serialize(cluster), has_endpoints(cluster)) for name, cluster in clusters.items()}
