"""Reads a running Envoy through its admin socket."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import httpx

from segserve_operator.adapters.traffic.envoy_clusters import Upstream
from segserve_operator.adapters.traffic.envoy_counts import Stats, parsed, pattern
from segserve_operator.adapters.traffic.envoy_listener import STAT_PREFIX
from segserve_operator.adapters.traffic.envoy_routes import ROUTES_NAME
from segserve_operator.core.traffic import real_group

CLUSTERS: Final = "cluster_manager.cds"
ROUTES: Final = f"http.{STAT_PREFIX}.rds.{ROUTES_NAME}"
WEIGHTS: Final = "runtime"
_SOURCES: Final = (CLUSTERS, ROUTES, WEIGHTS)
_REFUSALS: Final = ("update_rejected", "update_failure")
_ACTIVE: Final = (".upstream_rq_active", ".upstream_rq_pending_active")
_NAMES_ASKED_FOR: Final = 50  # a question's line may have 64 KiB


class GatewayUnreachableError(Exception):
    """Envoy's admin socket does not answer."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Which version of each file Envoy follows; empty before the first."""

    clusters: str = ""
    routes: str = ""
    weights: str = ""


class EnvoyAdmin:
    """A connection to the admin socket; every call raises `GatewayUnreachableError` where nothing answers.

    With thousands of clusters a question about statistics takes tens of milliseconds of Envoy's main thread: each
    here asks for no more kinds of them than it needs.
    """

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

    async def check_ready(self) -> None:
        """Raise where Envoy is starting or ending."""
        await self._get("/ready")

    async def versions(self) -> Versions:
        """Return the versions that Envoy follows."""
        found = await self._stats("TextReadouts", r".*\.version_text")
        clusters, routes, weights = (found.get(f"{source}.version_text", "") for source in _SOURCES)
        return Versions(clusters, routes, weights)

    async def weights(self) -> dict[str, int]:
        """Return the weights in force that are newer than the routes; of all questions the quickest."""
        entries = json.loads((await self._get("/runtime")).content)["entries"]
        return {key: int(entry["final_value"]) for key, entry in entries.items()}

    async def refused(self) -> int:
        """Return how often Envoy refused a file."""
        pattern = "|".join(re.escape(f"{source}.{name}") for source in _SOURCES for name in _REFUSALS)
        return sum(map(int, (await self._stats("Counters", pattern)).values()))

    async def warming(self) -> bool:
        """Tell whether some clusters are not in use yet."""
        return any(map(int, (await self._stats("Gauges", r"cluster_manager\.warming_clusters")).values()))

    async def active(self, names: Collection[str] | None = None) -> dict[str, int]:
        """Return the number of requests under way, by cluster, where it is not zero; of all clusters or of some."""
        few = names is not None and len(names) <= _NAMES_ASKED_FOR
        which = f"({'|'.join(map(re.escape, sorted(names or ())))})" if few else ".*"
        stats = await self._stats("Gauges", rf"cluster\.{which}\.upstream_rq(_pending)?_active")
        active: dict[str, int] = {}
        for stat, value in stats.items():
            ending = next(e for e in _ACTIVE if stat.endswith(e))
            name = stat.removeprefix("cluster.").removesuffix(ending)
            if int(value) and (names is None or name in names):
                active[name] = active.get(name, 0) + int(value)
        return active

    async def counts(self, models: Collection[str]) -> dict[str, Stats]:
        """Return by cluster what is evidence on these models; a cluster that was never asked is not there."""
        which = f"^{pattern(models if len(models) <= _NAMES_ASKED_FOR else ())}$"
        query = {"format": "json", "histogram_buckets": "detailed", "usedonly": "", "filter": which}
        found = parsed(json.loads((await self._get("/stats", **query)).content))
        return {name: stats for name, stats in found.items() if Upstream.parse(name).model in models}

    async def drain(self) -> None:
        """Begin to tell callers, with their answers, to connect anew; whoever connects is answered all the same."""
        await self._ask("POST", "/drain_listeners", graceful="", skip_exit="")

    async def metrics(self) -> bytes:
        """Return all statistics that have been used, in the text format of Prometheus."""
        return (await self._get("/stats/prometheus", usedonly="")).content

    async def _stats(self, kind: str, pattern: str) -> dict[str, str]:
        lines = (await self._get("/stats", type=kind, filter=f"^({pattern})$")).text.splitlines()
        pairs = (line.partition(": ") for line in lines)
        return {name: value.strip('"') for name, _, value in pairs}

    async def _get(self, path: str, **query: str) -> httpx.Response:
        return await self._ask("GET", path, **query)

    async def _ask(self, method: str, path: str, **query: str) -> httpx.Response:
        try:
            return (await self._client.request(method, path, params=query)).raise_for_status()
        except httpx.HTTPError as error:
            raise GatewayUnreachableError(f"Envoy does not answer at {self._socket}: {error!r}") from error


def active_by_model(active: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """Sum up callers' requests to models under way over the clusters of each model and group."""
    found: dict[tuple[str, str], int] = {}
    for name, count in active.items():
        upstream = Upstream.parse(name)
        if upstream.purpose in ("infer", "network"):
            key = (upstream.model, real_group(upstream.group))
            found[key] = found.get(key, 0) + count
    return found
