"""HTTP clients of a running Envoy: of its admin socket, and of the listener for segserve's own requests."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import httpx

from segserve_operator.adapters.traffic.envoy_clusters import Upstream
from segserve_operator.adapters.traffic.envoy_counts import Stats, parse_stats, stats_pattern
from segserve_operator.adapters.traffic.envoy_listener import STAT_PREFIX
from segserve_operator.adapters.traffic.envoy_routes import LIMITS_NAME, ROUTES_NAME

CLUSTERS: Final = "cluster_manager.cds"
ROUTES: Final = f"http.{STAT_PREFIX}.rds.{ROUTES_NAME}"
WEIGHTS: Final = "runtime"
LIMITS: Final = f"extension_config_discovery.http_filter.{LIMITS_NAME}"
_SOURCES: Final = (CLUSTERS, ROUTES, WEIGHTS, LIMITS)
_REJECTIONS: Final = ("update_rejected", "update_failure")
_ACTIVE: Final = (".upstream_rq_active", ".upstream_rq_pending_active")
# A request line may have 64 KiB; beyond this many names all statistics are read and filtered here.
_NAMES_PER_QUERY: Final = 50
WITHOUT_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP, which are made in every pass: httpx otherwise makes a context for each, in 2 ms."""
UNIX_SCHEME: Final = "unix:"
"""Scheme of the address of a listener on a Unix socket, as gRPC has it; the path follows."""


class EnvoyUnreachableError(Exception):
    """Envoy's admin socket does not answer."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The version of each file that Envoy follows; empty before the first."""

    clusters: str = ""
    routes: str = ""
    weights: str = ""
    limits: str = ""


class EnvoyAdmin:
    """A connection to the admin socket; every call raises `EnvoyUnreachableError` if Envoy does not answer.

    With thousands of clusters, reading statistics takes tens of milliseconds of Envoy's main thread, so each method
    reads only the kind of statistics that it needs.
    """

    def __init__(self, socket: Path, *, timeout_s: float) -> None:
        self._socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), verify=WITHOUT_TLS),
            base_url="http://envoy",
            timeout=timeout_s,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def check_ready(self) -> None:
        """Raise `EnvoyUnreachableError` if Envoy is starting or shutting down."""
        await self._get("/ready")

    async def versions(self) -> Versions:
        """Return the versions that Envoy follows."""
        readouts = await self._stats("TextReadouts", r".*\.version_text")
        return Versions(*(readouts.get(f"{source}.version_text", "") for source in _SOURCES))

    async def weights(self) -> dict[str, int]:
        """Return the weights in force that are newer than the routes; the fastest of all queries."""
        entries = json.loads((await self._get("/runtime")).content)["entries"]
        return {key: int(entry["final_value"]) for key, entry in entries.items()}

    async def rejections(self) -> int:
        """Return how often Envoy rejected a file."""
        pattern = "|".join(re.escape(f"{source}.{name}") for source in _SOURCES for name in _REJECTIONS)
        return sum(map(int, (await self._stats("Counters", pattern)).values()))

    async def active(self, names: Collection[str] | None = None) -> dict[str, int]:
        """Return the requests in flight by cluster, without zeros; of the clusters `names`, or of all."""
        few = names is not None and len(names) <= _NAMES_PER_QUERY
        clusters = f"({'|'.join(map(re.escape, sorted(names or ())))})" if few else ".*"
        stats = await self._stats("Gauges", rf"cluster\.{clusters}\.upstream_rq(_pending)?_active")
        active: dict[str, int] = {}
        for stat, value in stats.items():
            suffix = next(suffix for suffix in _ACTIVE if stat.endswith(suffix))
            name = stat.removeprefix("cluster.").removesuffix(suffix)
            if int(value) and (names is None or name in names):
                active[name] = active.get(name, 0) + int(value)
        return active

    async def counts(self, models: Collection[str]) -> dict[str, Stats]:
        """Return the statistics of these models' inference by cluster; without clusters that never had a request."""
        pattern = stats_pattern(models if len(models) <= _NAMES_PER_QUERY else ())
        query = {"format": "json", "histogram_buckets": "detailed", "usedonly": "", "filter": f"^{pattern}$"}
        by_cluster = parse_stats(json.loads((await self._get("/stats", **query)).content))
        return {name: stats for name, stats in by_cluster.items() if Upstream.parse(name).model in models}

    async def drain(self) -> None:
        """Ask callers, in responses, to connect elsewhere; new connections are still served."""
        await self._request("POST", "/drain_listeners", graceful="", skip_exit="")

    async def metrics(self) -> bytes:
        """Return all statistics in use, in the Prometheus text format."""
        return (await self._get("/stats/prometheus", usedonly="")).content

    async def _stats(self, kind: str, pattern: str) -> dict[str, str]:
        lines = (await self._get("/stats", type=kind, filter=f"^({pattern})$")).text.splitlines()
        pairs = (line.partition(": ") for line in lines)
        return {name: value.strip('"') for name, _, value in pairs}

    async def _get(self, path: str, **query: str) -> httpx.Response:
        return await self._request("GET", path, **query)

    async def _request(self, method: str, path: str, **query: str) -> httpx.Response:
        try:
            return (await self._client.request(method, path, params=query)).raise_for_status()
        except httpx.HTTPError as error:
            raise EnvoyUnreachableError(f"Envoy does not answer at {self._socket}: {error!r}") from error


def active_by_model(active: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """Return callers' requests in flight by (model, group), given the requests of each cluster."""
    totals: dict[tuple[str, str], int] = {}
    for name, count in active.items():
        upstream = Upstream.parse(name)
        if upstream.is_inference:
            key = (upstream.model, upstream.group)
            totals[key] = totals.get(key, 0) + count
    return totals


def internal_client(url: str, *, timeout_s: float) -> httpx.AsyncClient:
    """Return a client of the internal listener at `url`: `http://host:port`, or `unix:` and the path of a socket."""
    if url.startswith(UNIX_SCHEME):
        transport = httpx.AsyncHTTPTransport(uds=url.removeprefix(UNIX_SCHEME), verify=WITHOUT_TLS)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=timeout_s, trust_env=False)
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, verify=WITHOUT_TLS, trust_env=False)
