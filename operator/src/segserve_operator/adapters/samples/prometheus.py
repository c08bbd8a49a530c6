"""Samples out of a Prometheus that scrapes the gateways' metrics, for where pods may not be asked directly.

Coarser than what gateways say themselves: a sample is as old as the last scrape, so that looks are empty until the
next one; latencies have the edges of Envoy's own buckets (…, 100, 250, 500, 1000, … ms), and count with the lower
edge of theirs. Failures between the last scrape and a change of a group's servers are lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from segserve_operator.adapters.traffic.envoy_counts import BIN, LATENCIES, STATISTICS, Stats, tallies
from segserve_operator.core.rollout.counters import Count, Sample

STARTED: Final = "segserve_gateway_started_seconds"
"""When a gateway's counts were zero, in its own metrics."""
_BUCKET: Final = f"envoy_cluster_{LATENCIES}_bucket"
_FIVE: Final = "upstream_rq_5xx"
_CLASSES: Final = "envoy_cluster_upstream_rq_xx"  # Envoy makes the first digit of a status a label
_METRICS: Final[Mapping[str, str]] = {
    "envoy_cluster_" + statistic.replace(".", "_"): statistic
    for statistic in STATISTICS
    if statistic not in (_FIVE, LATENCIES)
}
_TIMEOUT_S: Final = 5.0


class PrometheusError(Exception):
    """Prometheus does not answer, or not with what was asked for."""


@dataclass(slots=True)
class _Gateway:
    started_s: float | None = None
    clusters: dict[str, Stats] = field(default_factory=dict)
    buckets: dict[str, dict[float, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrometheusSamples:
    """Asks the Prometheus at `url` for series that have these labels; a gateway is known by its label `named_by`."""

    url: str
    labels: Mapping[str, str] = field(default_factory=dict)
    named_by: str = "pod"

    async def samples(self, models: Mapping[str, tuple[str, str]], now_s: float) -> dict[str, Sample]:
        """Return the sample of each model; raises `PrometheusError`."""
        if not models:
            return {}
        gateways = self._gateways(await self._ask(self.query(models), now_s))
        found: dict[str, dict[str, Count]] = {model: {} for model in models}
        for name, gateway in gateways.items():
            if gateway.started_s is None:
                continue
            for model, by_series in tallies(_complete(gateway)).items():
                found[model][name] = Count(f"{gateway.started_s:.3f}", now_s, by_series, gateway.started_s)
        return dict(found)

    def query(self, models: Iterable[str]) -> str:
        """Return the one question, in PromQL."""
        names = "|".join((*_METRICS, _CLASSES, _BUCKET))
        clusters = f"({'|'.join(re.escape(model) for model in sorted(models))})/[^/]+/infer/(http|grpc)"
        ours = "".join(f",{key}={_quoted(value)}" for key, value in sorted(self.labels.items()))
        counted = f"{{__name__=~{_quoted(names)},envoy_cluster_name=~{_quoted(clusters)}{ours}}}"
        return f"{counted} or {{__name__={_quoted(STARTED)}{ours}}}"

    async def _ask(self, query: str, now_s: float) -> list[Any]:
        data = {"query": query, "time": f"{now_s:.3f}"}
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=_TIMEOUT_S) as client:
                answer = await client.post("/api/v1/query", data=data)
            return list(answer.raise_for_status().json()["data"]["result"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise PrometheusError(f"the Prometheus at {self.url!r} does not answer: {error!r}") from error

    def _gateways(self, result: Iterable[Mapping[str, Any]]) -> dict[str, _Gateway]:
        found: dict[str, _Gateway] = {}
        for series in result:
            labels, value = series["metric"], float(series["value"][1])
            gateway = found.setdefault(labels.get(self.named_by, labels.get("instance", "")), _Gateway())
            name = labels["__name__"]
            if name == STARTED:
                gateway.started_s = value
                continue
            stats = gateway.clusters.setdefault(labels["envoy_cluster_name"], {})
            if name == _BUCKET:
                gateway.buckets.setdefault(labels["envoy_cluster_name"], {})[float(labels["le"])] = int(value)
            elif name == _CLASSES:
                stats.update({_FIVE: int(value)} if labels["envoy_response_code_class"] == "5" else {})
            else:
                stats[_METRICS[name]] = int(value)
        return found


def _complete(gateway: _Gateway) -> dict[str, Stats]:
    """Return statistics by cluster; of buckets, which count all up to their edge, what each has alone."""
    found = {name: dict(stats) for name, stats in gateway.clusters.items()}
    for name, buckets in gateway.buckets.items():
        lower, below = 0.0, 0
        for upper, count in sorted(buckets.items()):
            found[name][f"{BIN}{lower:g}"] = count - below
            lower, below = upper, count
    return found


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
