"""Reads a running Envoy through its admin socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from segserve_operator.adapters.traffic.envoy_clusters import Upstream
from segserve_operator.adapters.traffic.envoy_listener import STAT_PREFIX
from segserve_operator.adapters.traffic.envoy_routes import ROUTES_NAME, plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from segserve_operator.core.traffic import TrafficPlan

_CLUSTERS: Final = "cluster_manager.cds"
_ROUTES: Final = f"http.{STAT_PREFIX}.rds.{ROUTES_NAME}"
_ACTIVE: Final = (".upstream_rq_active", ".upstream_rq_pending_active")


class GatewayUnreachableError(Exception):
    """Envoy's admin socket does not answer."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What Envoy has of one file: the version (empty before the first), and how often it refused one."""

    version: str
    refused: int


class EnvoyAdmin:
    """A connection to the admin socket; every call raises `GatewayUnreachableError` where nothing answers."""

    def __init__(self, socket: Path, *, timeout_s: float) -> None:
        self._socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), verify=False),
            base_url="http://envoy",
            timeout=timeout_s,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def clusters(self) -> Taken:
        """Return the version of the clusters, empty while some of them are not in use yet."""
        stats = await self._stats(rf"^({_CLUSTERS}\.|cluster_manager\.warming_clusters$)")
        if int(stats.get("cluster_manager.warming_clusters", 0)):
            return Taken("", int(stats.get(f"{_CLUSTERS}.update_rejected", 0)))
        return _taken(stats, _CLUSTERS)

    async def routes(self) -> Taken:
        """Return the version of the routes."""
        return _taken(await self._stats(rf"^{_ROUTES}\."), _ROUTES)

    async def active(self) -> dict[str, int]:
        """Return the number of requests under way, by cluster, where it is not zero."""
        stats = await self._stats(r"^cluster\..*\.upstream_rq(_pending)?_active$")
        active: dict[str, int] = {}
        for stat, value in stats.items():
            ending = next(e for e in _ACTIVE if stat.endswith(e))
            name = stat.removeprefix("cluster.").removesuffix(ending)
            if int(value):
                active[name] = active.get(name, 0) + int(value)
        return active

    async def plan(self) -> tuple[str, TrafficPlan] | None:
        """Return the plan that the routes in use carry, with their version; None before the first."""
        query = {"resource": "dynamic_route_configs", "mask": "version_info,route_config.metadata"}
        dump = (await self._get("/config_dump", query)).json()
        for found in dump.get("configs", ()):
            return found["version_info"], plan_of(found["route_config"])
        return None

    async def _stats(self, pattern: str) -> dict[str, str]:
        lines = (await self._get("/stats", {"filter": pattern})).text.splitlines()
        pairs = (line.partition(": ") for line in lines)
        return {name: value.strip('"') for name, _, value in pairs}

    async def _get(self, path: str, query: Mapping[str, Any]) -> httpx.Response:
        try:
            return (await self._client.get(path, params=dict(query))).raise_for_status()
        except httpx.HTTPError as error:
            raise GatewayUnreachableError(f"Envoy does not answer at {self._socket}: {error!r}") from error


def active_by_model(active: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """Sum up requests under way over the clusters of each model and group."""
    found: dict[tuple[str, str], int] = {}
    for name, count in active.items():
        upstream = Upstream.parse(name)
        if upstream.model:
            key = (upstream.model, upstream.group)
            found[key] = found.get(key, 0) + count
    return found


def _taken(stats: Mapping[str, str], source: str) -> Taken:
    return Taken(stats.get(f"{source}.version_text", ""), int(stats.get(f"{source}.update_rejected", 0)))
