"""Renders plan after plan, anew only what one changes: a gateway may have a thousand models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from segserve_operator.adapters.traffic.envoy_clusters import Json, clusters_of, clusters_of_servers, has_endpoints
from segserve_operator.adapters.traffic.envoy_files import as_text
from segserve_operator.adapters.traffic.envoy_routes import Table
from segserve_operator.adapters.traffic.envoy_weights import weights_of
from segserve_operator.core.traffic import Route, TrafficPlan


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as a part of its file; `usable` where it has a server."""

    text: str
    usable: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """One model's part: `entries` of the table name the weights of `written`, `weights` are the newer ones.

    `early_weights` are for the table as it was: with them Envoy does what the route says of weights before it has
    read the new table.
    """

    route: Route
    written: Route
    clusters: dict[str, Cluster]
    entries: dict[str, Json]
    weights: dict[str, int]
    early_weights: dict[str, int]


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that Envoy is told: equal parts of an earlier one are the same objects."""

    plan: TrafficPlan
    models: dict[str, Rendered] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    entries: dict[str, Json] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    early_weights: dict[str, int] = field(default_factory=dict)


def render(plan: TrafficPlan, before: Configuration | None, *, timeout_s: float) -> Configuration:
    """Return the configuration for `plan`; `before` is the one that Envoy follows now, as far as it is known."""
    table = Table(timeout_s)
    known = before.models if before is not None else {}
    found = Configuration(plan)
    found.clusters.update(_pieces(clusters_of_servers(plan.servers)))
    for route in plan.routes:
        rendered = _rendered(route, known.get(route.model), table)
        found.models[route.model] = rendered
        found.clusters.update(rendered.clusters)
        found.entries.update(rendered.entries)
        found.weights.update(rendered.weights)
        found.early_weights.update(rendered.early_weights)
    return found


def usable_clusters(present: Mapping[str, Cluster], wanted: Mapping[str, Cluster]) -> dict[str, Cluster]:
    """Return the clusters with which both the old routes and the new ones find servers."""
    return {**present, **{name: new for name, new in wanted.items() if name not in present or new.usable}}


def read_clusters(resources: Iterable[Json]) -> dict[str, Cluster]:
    """Return by name the clusters that a file holds."""
    return _pieces({resource["name"]: resource for resource in resources})


def _rendered(route: Route, before: Rendered | None, table: Table) -> Rendered:
    if before is None:
        return Rendered(route, route, _pieces(clusters_of(route)), table.entries_of(route, route), {}, {})
    if before.route == route:
        return replace(before, early_weights=before.weights)
    clusters = _pieces(clusters_of(route))
    clusters = before.clusters if clusters == before.clusters else clusters
    if _clusters_in_order(route) != _clusters_in_order(before.written):
        return Rendered(route, route, clusters, table.entries_of(route, route), {}, {})
    newer = weights_of(route, before.written)
    shares = tuple(
        replace(new, weight=old.weight) for new, old in zip(route.shares, before.written.shares, strict=True)
    )
    written = replace(route, shares=shares)
    if table.entries_of(route, written) == before.entries:
        return Rendered(route, written, clusters, before.entries, newer, newer)
    return Rendered(route, route, clusters, table.entries_of(route, route), {}, newer)


def _clusters_in_order(route: Route) -> list[tuple[str, str, bool]]:
    return [(share.group, share.revision, share.twin) for share in route.shares]


def _pieces(clusters: dict[str, Json]) -> dict[str, Cluster]:
    return {name: Cluster(as_text(cluster), has_endpoints(cluster)) for name, cluster in clusters.items()}
