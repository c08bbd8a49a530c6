"""Brings a running Envoy from one configuration to the next, without a request that fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from segserve_operator.adapters.local.files import write_private
from segserve_operator.adapters.traffic.envoy_admin import EnvoyAdmin, EnvoyUnreachableError, Versions
from segserve_operator.adapters.traffic.envoy_clusters import Json, Upstream
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.adapters.traffic.envoy_files import (
    DiscoveryResponse,
    EnvoyRefusedError,
    document,
    joined,
    put,
    read_resources,
    read_response,
    write_plan,
)
from segserve_operator.adapters.traffic.envoy_rendering import (
    EnvoyCluster,
    EnvoyConfiguration,
    read_clusters,
    render,
    usable_clusters,
)
from segserve_operator.adapters.traffic.envoy_routes import render_routes, render_weights
from segserve_operator.core.traffic import TrafficPlan, real_group

# Envoy's main thread tells its workers of news and nothing says when they have heard: time for a turn of their loops.
_WORKERS_TURN_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class _WrittenState:
    """What the files hold. `entries` and `configuration` are None where an earlier object wrote them."""

    clusters: Mapping[str, EnvoyCluster]
    weights: Mapping[str, int]
    entries: Mapping[str, Json] | None
    configuration: EnvoyConfiguration | None
    documents: Mapping[Path, DiscoveryResponse]


class EnvoyUpdater:
    """Writes the files in the order in which that is safe. Not to be used by two at a time.

    `on_replace` is told the models that have clusters replaced by others of the same name, before that and after it.
    """

    def __init__(
        self,
        files: EnvoyFiles,
        *,
        timeout_s: float,
        patience_s: float,
        on_replace: Callable[[EnvoyAdmin, Collection[str]], Awaitable[None]],
    ) -> None:
        self._files = sources
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._on_replace = on_replace
        self._held: _WrittenState | None = None

    def write(self, plan: TrafficPlan) -> None:
        """Write all files at once, for an Envoy that starts."""
        wanted = render(plan, None, timeout_s=self._timeout_s)
        documents = {
            self._files.clusters: _clusters(wanted.clusters),
            self._files.routes: self._routes(wanted),
            self._files.weights: _weights(wanted.weights),
        }
        for path, held in documents.items():
            write_private(path, held.text)
        self._held = _WrittenState(wanted.clusters, wanted.weights, wanted.entries, wanted, documents)
        self._record(wanted)

    async def shift(self, admin: EnvoyAdmin, plan: TrafficPlan) -> None:
        """Make Envoy follow a plan, but for what it needs no more; a refused one changes nothing."""
        before = self._now()
        wanted = render(plan, before.configuration, timeout_s=self._timeout_s)
        try:
            await self._put_clusters(admin, usable_clusters(before.clusters, wanted.clusters))
            await self._put_weights(admin, {**before.weights, **wanted.early_weights})
            await self._put_routes(admin, wanted)
            if self._now() is not before:
                await asyncio.sleep(_WORKERS_TURN_S)
            await self._put_weights(admin, wanted.weights)
            await self._confirm(admin)
        except EnvoyRefusedError:
            await self._take_back(admin, before)
            raise
        self._held = replace(self._now(), configuration=wanted)
        self._record(wanted)

    async def tidy(self, admin: EnvoyAdmin) -> None:
        """Remove the clusters that the configuration does not have and that no request uses."""
        now = self._now()
        if now.configuration is None or now.clusters == now.configuration.clusters:
            return
        wanted = now.configuration.clusters
        active = await admin.active([name for name in now.clusters if name not in wanted])
        await self._put_clusters(admin, {**{name: now.clusters[name] for name in active}, **wanted})
        self._record(now.configuration)

    def without_weight(self) -> list[str]:
        """Return the clusters for callers' requests to models that get none."""
        now = self._now()
        routes = now.configuration.plan.routes if now.configuration is not None else ()
        weighed = {(route.model, share.group) for route in routes for share in route.shares if share.weight}
        upstreams = map(Upstream.parse, now.clusters)
        asked = (upstream for upstream in upstreams if upstream.purpose in ("infer", "network"))
        return [upstream.name for upstream in asked if (upstream.model, real_group(upstream.group)) not in weighed]

    async def _put_clusters(self, admin: EnvoyAdmin, clusters: Mapping[str, EnvoyCluster]) -> None:
        present = self._now().clusters
        if clusters == present:
            return
        replaced = {
            Upstream.parse(name).model for name in clusters if present.get(name, clusters[name]) != clusters[name]
        }
        new, refused, path = _clusters(clusters), await admin.refused(), self._files.clusters

        async def follows() -> bool:
            if (await admin.versions()).clusters == new.version:
                return not await admin.warming()
            return await _not_refused(admin, refused, path)

        await self._on_replace(admin, replaced)
        self._hold(path, new, clusters=clusters)
        await put(path, new, follows, self._patience_s)
        await self._on_replace(admin, replaced)

    async def _put_routes(self, admin: EnvoyAdmin, wanted: EnvoyConfiguration) -> None:
        if wanted.entries == self._now().entries:
            return
        new, path = self._routes(wanted), self._files.routes
        if new == self._now().documents[path]:
            self._hold(path, new, entries=wanted.entries)
            return
        refused = await admin.refused()

        async def follows() -> bool:
            return (await admin.versions()).routes == new.version or await _not_refused(admin, refused, path)

        self._hold(path, new, entries=wanted.entries)
        await put(path, new, follows, self._patience_s)

    async def _put_weights(self, admin: EnvoyAdmin, weights: Mapping[str, int]) -> None:
        if weights == self._now().weights:
            return
        new, path = _weights(weights), self._files.weights

        async def follows() -> bool:
            return await admin.weights() == weights

        self._hold(path, new, weights=weights)
        await put(path, new, follows, self._patience_s)

    async def follows(self, admin: EnvoyAdmin) -> bool:
        """Tell whether Envoy follows all files."""
        return await admin.versions() == self._versions()

    async def _confirm(self, admin: EnvoyAdmin) -> None:
        """Wait until Envoy follows all files, those included that an earlier call had given up on."""
        try:
            async with asyncio.timeout(self._patience_s):
                while not await self.follows(admin):
                    await asyncio.sleep(_WORKERS_TURN_S)
        except TimeoutError:
            for path, held in self._now().documents.items():
                write_private(path, held.text)  # it may have missed the change, or somebody else wrote there
            message = f"Envoy does not follow the files in {self._files.folder} within {self._patience_s} s"
            raise EnvoyUnreachableError(message) from None

    async def _take_back(self, admin: EnvoyAdmin, before: _WrittenState) -> None:
        for path, old in before.documents.items():
            if old != self._now().documents[path]:
                write_private(path, old.text)
        self._held = before
        with suppress(EnvoyUnreachableError):
            await self._confirm(admin)

    def _now(self) -> _WrittenState:
        if self._held is None:
            paths = (self._files.clusters, self._files.routes, self._files.weights)
            documents = {path: read_response(path) for path in paths}
            clusters, _, weights = (read_resources(documents[path]) for path in paths)
            layer = weights[0]["layer"] if weights else {}
            self._held = _WrittenState(read_clusters(clusters), layer, None, None, documents)
        return self._held

    def _hold(self, path: Path, new: DiscoveryResponse, **what: Any) -> None:
        now = self._now()
        self._held = replace(now, documents={**now.documents, path: new}, **what)

    def _versions(self) -> Versions:
        held = self._now().documents
        clusters, routes, weights = self._files.clusters, self._files.routes, self._files.weights
        return Versions(held[clusters].version, held[routes].version, held[weights].version)

    def _record(self, of: EnvoyConfiguration) -> None:
        write_plan(self._files.plan, self._versions(), of.plan)

    def _routes(self, wanted: EnvoyConfiguration) -> DiscoveryResponse:
        return document([render_routes(wanted.entries, timeout_s=self._timeout_s)])


def _clusters(clusters: Mapping[str, EnvoyCluster]) -> DiscoveryResponse:
    return joined(clusters[name].text for name in sorted(clusters))


def _weights(weights: Mapping[str, int]) -> DiscoveryResponse:
    return document([render_weights({key: weights[key] for key in sorted(weights)})])


async def _not_refused(admin: EnvoyAdmin, before: int, path: Path) -> bool:
    """Return False, the answer to whether Envoy follows a file that it has not refused."""
    if await admin.refused() > before:
        raise EnvoyRefusedError(f"Envoy refused {path}; its log says why")
    return False
