"""Updates the configuration of a running Envoy without failing a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from segserve_operator.adapters.traffic.envoy_admin import EnvoyAdmin, EnvoyUnreachableError, Versions
from segserve_operator.adapters.traffic.envoy_clusters import (
    EnvoyCluster,
    Upstream,
    read_clusters,
    route_clusters,
    server_clusters,
)
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.adapters.traffic.envoy_files import (
    ConfigurationRejectedError,
    DiscoveryResponse,
    discovery_response,
    read_response,
    replace_and_wait,
    write_plan,
    write_watched,
)
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_messages import CLUSTER, ROUTE_CONFIGURATION, RUNTIME, Json
from segserve_operator.adapters.traffic.envoy_plain_http import documents
from segserve_operator.adapters.traffic.envoy_routes import (
    RouteTable,
    changed_weights,
    encode_entries,
    encode_limits,
    encode_routes,
    encode_weights,
    read_limits_version,
    read_weights,
)
from segserve_operator.core.traffic import Route, RouteLimits, TrafficPlan

UPDATE_TIMEOUT_S: Final = 10.0
# Envoy's main thread hands changes to its workers, and nothing reports when they have arrived: one turn of their loops.
_WORKERS_TURN_S: Final = 0.05
_upstream: Final = lru_cache(maxsize=2**16)(Upstream.parse)


@dataclass(frozen=True, slots=True)
class RenderedRoute:
    """The configuration of one model.

    `entries` of the table contain the weights of the route `written`, and `table` is their encoded form; `weights`
    override them. `early_weights` apply the route's weights to the former table, until Envoy has loaded the new one.
    """

    route: Route
    written: Route
    clusters: dict[str, EnvoyCluster]
    entries: dict[str, Json]
    table: bytes
    weights: dict[str, int]
    early_weights: dict[str, int]


@dataclass(frozen=True, slots=True)
class EnvoyConfiguration:
    """The complete dynamic configuration. Parts that equal parts of the previous configuration are the same objects."""

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
    configuration.clusters.update(server_clusters(plan.servers))
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


def _rendered(route: Route, before: RenderedRoute | None, table: RouteTable) -> RenderedRoute:
    if before is not None and before.route == route:
        return before if before.early_weights == before.weights else replace(before, early_weights=before.weights)
    clusters = route_clusters(route)
    if before is None:
        return _with_table(route, clusters, table, {})
    # The same objects as before, so that comparing whole configurations is cheap.
    clusters = before.clusters if clusters == before.clusters else clusters
    if _split_of(route) != _split_of(before.written):
        return _with_table(route, clusters, table, {})
    # Only weights have changed: override them, without a new table, unless anything else in the entries differs.
    weights = changed_weights(route, before.written)
    shares = tuple(
        replace(new, weight=old.weight) for new, old in zip(route.shares, before.written.shares, strict=True)
    )
    written = replace(route, shares=shares)
    if table.route_entries(route, written) == before.entries:
        return RenderedRoute(route, written, clusters, before.entries, before.table, weights, weights)
    return _with_table(route, clusters, table, weights)


def _with_table(
    route: Route, clusters: dict[str, EnvoyCluster], table: RouteTable, early_weights: dict[str, int]
) -> RenderedRoute:
    entries = table.route_entries(route, route)
    return RenderedRoute(route, route, clusters, entries, encode_entries(entries), {}, early_weights)


def _split_of(route: Route) -> list[tuple[str, str]]:
    return [(share.group, share.revision) for share in route.shares]


@dataclass(frozen=True, slots=True)
class _WrittenState:
    """The content of the files. `entries` and `configuration` are None if an earlier `EnvoyUpdater` wrote the files."""

    clusters: Mapping[str, EnvoyCluster]
    weights: Mapping[str, int]
    entries: Mapping[str, Json] | None
    configuration: EnvoyConfiguration | None
    responses: Mapping[Path, DiscoveryResponse]


class EnvoyUpdater:
    """Writes Envoy's files in a safe order. Not safe for concurrent use.

    `on_replace` is called before and after clusters are replaced by others of the same name, with their models.
    """

    def __init__(
        self,
        files: EnvoyFiles,
        settings: EnvoySettings,
        *,
        timeout_s: float,
        update_timeout_s: float = UPDATE_TIMEOUT_S,
        on_replace: Callable[[EnvoyAdmin, Collection[str]], Awaitable[None]],
    ) -> None:
        self._files, self._settings = files, settings
        self._timeout_s = timeout_s
        self._update_timeout_s = update_timeout_s
        self._on_replace = on_replace
        self._written: _WrittenState | None = None
        self._rejected: tuple[EnvoyAdmin, int] | None = None
        self._before_unfinished: _WrittenState | None = None
        self._rendered_limits: tuple[tuple[tuple[str, RouteLimits], ...], DiscoveryResponse] | None = None

    def write(self, plan: TrafficPlan) -> None:
        """Write all files at once, before Envoy starts."""
        desired = render(plan, None, timeout_s=self._timeout_s)
        responses = {
            self._files.clusters: _clusters(desired.clusters),
            self._files.routes: self._routes(desired),
            self._files.weights: _weights(desired.weights),
            self._files.limits: self._limits(plan),
        }
        for path, content in responses.items():
            write_watched(path, content)
        self._written = _WrittenState(desired.clusters, desired.weights, desired.entries, desired, responses)
        self._record(desired)

    async def shift(
        self, admin: EnvoyAdmin, plan: TrafficPlan, *, superseded: Callable[[], bool] = lambda: False
    ) -> bool:
        """Make Envoy follow a plan, keeping what the plan no longer needs; a rejected plan changes nothing.

        Returns False without having finished if the plan is `superseded` once Envoy has its clusters, or its routes:
        the caller has a newer plan, which goes on from there instead of waiting for the rest of this one.
        """
        before = self._current()
        complete = self._before_unfinished or before
        desired = render(plan, before.configuration, timeout_s=self._timeout_s)
        try:
            # Whatever routes refer to must exist before they do.
            await self._apply_clusters(admin, usable_clusters(before.clusters, desired.clusters))
            if superseded():
                self._before_unfinished = complete
                return False
            await self._apply_weights(admin, {**before.weights, **desired.early_weights})
            new, path = self._limits(plan), self._files.limits
            if new != self._current().responses[path]:
                await self._replace(admin, path, new, lambda versions: versions.limits)
            await self._apply_routes(admin, desired)
            if superseded():
                # The weights that override the former table stay until the workers no longer use it.
                self._written = replace(self._current(), configuration=desired)
                self._before_unfinished = complete
                return False
            if self._current() is not complete:
                await asyncio.sleep(_WORKERS_TURN_S)
            await self._apply_weights(admin, desired.weights)
            await self._confirm(admin)
        except ConfigurationRejectedError:
            self._before_unfinished = None
            await self._restore(admin, before, complete)
            raise
        self._before_unfinished = None
        self._written = replace(self._current(), configuration=desired)
        self._record(desired)
        return True

    async def remove_unused(self, admin: EnvoyAdmin) -> None:
        """Remove clusters that are not in the configuration and that no request uses."""
        current = self._current()
        if current.configuration is None or current.clusters == current.configuration.clusters:
            return
        desired = current.configuration.clusters
        active = await admin.active([name for name in current.clusters if name not in desired])
        await self._apply_clusters(admin, {**{name: current.clusters[name] for name in active}, **desired})
        self._record(current.configuration)

    def models(self) -> Collection[str]:
        """Return the models that have routes or clusters."""
        current = self._current()
        if current.configuration is not None:
            return current.configuration.models.keys()
        return {Upstream.parse(name).model for name in current.clusters}

    def without_weight(self) -> list[str]:
        """Return the clusters for callers' inference requests in groups to which the plan sends none."""
        current = self._current()
        routes = current.configuration.plan.routes if current.configuration is not None else ()
        weighted = {(route.model, share.group) for route in routes for share in route.shares if share.weight}
        upstreams = map(_upstream, current.clusters)
        inference = (upstream for upstream in upstreams if upstream.is_inference)
        return [up.name for up in inference if (up.model, up.group) not in weighted]

    async def _apply_clusters(self, admin: EnvoyAdmin, clusters: Mapping[str, EnvoyCluster]) -> None:
        before = self._current().clusters
        if clusters == before:
            return
        replaced = {
            Upstream.parse(name).model
            for name, new in clusters.items()
            if (old := before.get(name, new)) is not new and old != new
        }
        new, rejections, path = _clusters(clusters), await self._rejections(admin), self._files.clusters

        async def follows() -> bool:
            # Clusters with fixed servers and without health checks are in use as soon as they are loaded.
            if (await admin.versions()).clusters == new.version:
                return True
            await _check_not_rejected(admin, rejections, path)
            return False

        await self._on_replace(admin, replaced)
        self._set_written(path, new, clusters=clusters)
        await replace_and_wait(path, new, follows, self._update_timeout_s)
        await self._on_replace(admin, replaced)

    async def _apply_routes(self, admin: EnvoyAdmin, desired: EnvoyConfiguration) -> None:
        if desired.entries == self._current().entries:
            return
        new, path = self._routes(desired), self._files.routes
        if new == self._current().responses[path]:
            self._set_written(path, new, entries=desired.entries)
            return
        await self._replace(admin, path, new, lambda versions: versions.routes, entries=desired.entries)

    async def _apply_weights(self, admin: EnvoyAdmin, weights: Mapping[str, int]) -> None:
        if weights == self._current().weights:
            return
        new, path = _weights(weights), self._files.weights

        async def follows() -> bool:
            return await admin.weights() == weights

        self._set_written(path, new, weights=weights)
        await replace_and_wait(path, new, follows, self._update_timeout_s)

    async def _replace(
        self, admin: EnvoyAdmin, path: Path, new: DiscoveryResponse, version: Callable[[Versions], str], **changes: Any
    ) -> None:
        """Replace a file, and wait until Envoy has its version, or rejects it."""
        rejections = await self._rejections(admin)

        async def follows() -> bool:
            if version(await admin.versions()) == new.version:
                return True
            await _check_not_rejected(admin, rejections, path)
            return False

        self._set_written(path, new, **changes)
        await replace_and_wait(path, new, follows, self._update_timeout_s)

    def _limits(self, plan: TrafficPlan) -> DiscoveryResponse:
        limited = tuple((route.model, route.limits) for route in plan.routes if route.limits is not None)
        if self._rendered_limits is None or self._rendered_limits[0] != limited:
            encoded = encode_limits(plan.routes, max_request_bytes=self._settings.max_request_bytes)
            self._rendered_limits = limited, DiscoveryResponse(*encoded)
        return self._rendered_limits[1]

    async def _rejections(self, admin: EnvoyAdmin) -> int:
        """Return how often Envoy had rejected a file before this change, which has a connection of its own."""
        if self._rejected is None or self._rejected[0] is not admin:
            self._rejected = admin, await admin.rejections()
        return self._rejected[1]

    async def follows(self, admin: EnvoyAdmin) -> bool:
        """Return whether Envoy follows all files."""
        return await admin.versions() == self._versions()

    async def _confirm(self, admin: EnvoyAdmin) -> None:
        """Wait until Envoy follows all files, including any that an earlier call timed out on."""
        try:
            async with asyncio.timeout(self._update_timeout_s):
                while not await self.follows(admin):
                    await asyncio.sleep(_WORKERS_TURN_S)
        except TimeoutError:
            # It may have missed a change, or another process wrote the files: writing them again triggers its watch.
            for path, content in self._current().responses.items():
                write_watched(path, content)
            message = f"Envoy has not loaded the files in {self._files.folder} within {self._update_timeout_s} s"
            raise EnvoyUnreachableError(message) from None

    async def _restore(self, admin: EnvoyAdmin, before: _WrittenState, complete: _WrittenState) -> None:
        """Write what was written for the plan before; the clusters of one that was not finished may be in use."""
        path = self._files.clusters
        responses = {**complete.responses, path: before.responses[path]}
        for path, old in responses.items():
            if old != self._current().responses[path]:
                write_watched(path, old)
        self._written = replace(complete, clusters=before.clusters, responses=responses)
        with suppress(EnvoyUnreachableError):
            await self._confirm(admin)

    def _current(self) -> _WrittenState:
        if self._written is None:
            paths = (self._files.clusters, self._files.routes, self._files.weights)
            responses = {path: read_response(path) for path in paths}
            clusters, _, weights = (responses[path].resources() for path in paths)
            content = self._files.limits.read_bytes() if self._files.limits.is_file() else b""
            responses[self._files.limits] = DiscoveryResponse(read_limits_version(content), content)
            self._written = _WrittenState(read_clusters(clusters), read_weights(weights), None, None, responses)
        return self._written

    def _set_written(self, path: Path, new: DiscoveryResponse, **changes: Any) -> None:
        current = self._current()
        self._written = replace(current, responses={**current.responses, path: new}, **changes)

    def _versions(self) -> Versions:
        responses = self._current().responses
        clusters, routes, weights = self._files.clusters, self._files.routes, self._files.weights
        files = (clusters, routes, weights, self._files.limits)
        return Versions(*(responses[path].version for path in files))

    def _record(self, configuration: EnvoyConfiguration) -> None:
        write_plan(self._files.plan, self._versions(), configuration.plan)

    def _routes(self, desired: EnvoyConfiguration) -> DiscoveryResponse:
        tables = (rendered.table for rendered in desired.models.values())
        encoded = encode_routes(
            tables,
            timeout_s=self._timeout_s,
            restricted=desired.plan.is_restricted,
            metrics=self._settings.metrics_socket is not None,
            documents=documents(desired.plan) if self._settings.plain_http else {},
            loopback=self._settings.is_open,
        )
        return discovery_response(ROUTE_CONFIGURATION, [encoded])


def _clusters(clusters: Mapping[str, EnvoyCluster]) -> DiscoveryResponse:
    return discovery_response(CLUSTER, (clusters[name].content for name in sorted(clusters)))


def _weights(weights: Mapping[str, int]) -> DiscoveryResponse:
    return discovery_response(RUNTIME, [encode_weights(weights)])


async def _check_not_rejected(admin: EnvoyAdmin, rejections: int, path: Path) -> None:
    if await admin.rejections() > rejections:
        raise ConfigurationRejectedError(f"Envoy rejected {path}; its log says why")
