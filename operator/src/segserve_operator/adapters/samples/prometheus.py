"""Samples from a Prometheus that scrapes the gateways' metrics, for clusters where pods cannot be reached directly.

They are coarser than samples from the gateways: a sample is as old as the last scrape, so windows are empty until the
next one. Latencies have the edges of Envoy's default buckets (…, 100, 250, 500, 1000, … ms), and each counts with the
lower edge of its bucket. Failures between the last scrape and a change of a group's servers are lost.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from segserve_common.http.guard import body_within
from segserve_common.http.urls import RequestError, is_proxied
from segserve_common.kube.shards import read_json
from segserve_operator.adapters.traffic.envoy_counts import BIN, LATENCIES, LEFT, STATISTICS, Stats, counts_by_model
from segserve_operator.core.rollout.counters import Counters, Sample

STARTED: Final = "segserve_gateway_started_seconds"
"""Metric of a gateway with its start time, when all its counts were zero."""
_BUCKET: Final = f"envoy_cluster_{LATENCIES}_bucket"
_SERVER_ERRORS: Final = "upstream_rq_5xx"
_STATUS_CLASSES: Final = "envoy_cluster_upstream_rq_xx"  # Envoy turns the first digit of a status into a label
_METRICS: Final[Mapping[str, str]] = {
    "envoy_cluster_" + statistic.replace(".", "_"): statistic
    for statistic in STATISTICS
    if statistic not in (_SERVER_ERRORS, LATENCIES)
} | {"envoy_" + statistic.replace(".", "_"): statistic for statistic in LEFT}
_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 32 * 2**20


class PrometheusError(Exception):
    """Prometheus does not answer, or its answer cannot be read."""


@dataclass(slots=True)
class _Gateway:
    started_s: float | None = None
    clusters: dict[str, Stats] = field(default_factory=dict)
    buckets: dict[str, dict[float, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrometheusSamples:
    """Queries the Prometheus at `url` for series with `labels`; the label `named_by` identifies a gateway."""

    url: str
    labels: Mapping[str, str] = field(default_factory=dict)
    named_by: str = "pod"

    async def samples(self, models: Mapping[str, tuple[str, str]], now_s: float) -> dict[str, Sample]:
        """Return the sample of each model; raises `PrometheusError`."""
        if not models:
            return {}
        gateways = self._gateways(await self._query(self.query(models), now_s))
        samples: dict[str, dict[str, Counters]] = {model: {} for model in models}
        for name, gateway in gateways.items():
            if gateway.started_s is None:
                continue
            for model, counts in counts_by_model(_with_bins(gateway)).items():
                samples[model][name] = Counters(f"{gateway.started_s:.3f}", now_s, counts, gateway.started_s)
        return dict(samples)

    def query(self, models: Iterable[str]) -> str:
        """Return the one PromQL query for these models."""
        names = "|".join((*_METRICS, _STATUS_CLASSES, _BUCKET))
        clusters = f"({'|'.join(re.escape(model) for model in sorted(models))})/[^/]+/infer/(http|grpc)"
        matchers = "".join(f",{key}={_quoted(value)}" for key, value in sorted(self.labels.items()))
        counted = f"{{__name__=~{_quoted(names)},envoy_cluster_name=~{_quoted(clusters)}{matchers}}}"
        return f"{counted} or {{__name__={_quoted(STARTED)}{matchers}}}"

    async def _query(self, query: str, now_s: float) -> list[Any]:
        data = {"query": query, "time": f"{now_s:.3f}"}
        try:
            async with (
                httpx.AsyncClient(base_url=self.url, timeout=_TIMEOUT_S, trust_env=is_proxied(self.url)) as client,
                asyncio.timeout(_TIMEOUT_S),
                client.stream("POST", "/api/v1/query", data=data, headers={"Accept-Encoding": "identity"}) as response,
            ):
                answer = await body_within(response.raise_for_status(), _MAX_BYTES)
            return list(read_json(answer)["data"]["result"])
        except (httpx.HTTPError, RequestError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise PrometheusError(f"the Prometheus at {self.url!r} does not answer: {error!r}") from error

    def _gateways(self, result: Iterable[Mapping[str, Any]]) -> dict[str, _Gateway]:
        gateways: dict[str, _Gateway] = {}
        for series in result:
            labels, value = series["metric"], float(series["value"][1])
            gateway = gateways.setdefault(labels.get(self.named_by, labels.get("instance", "")), _Gateway())
            name = labels["__name__"]
            if name == STARTED:
                gateway.started_s = value
                continue
            stats = gateway.clusters.setdefault(labels["envoy_cluster_name"], {})
            if name == _BUCKET:
                gateway.buckets.setdefault(labels["envoy_cluster_name"], {})[float(labels["le"])] = int(value)
            elif name == _STATUS_CLASSES:
                if labels["envoy_response_code_class"] == "5":
                    stats[_SERVER_ERRORS] = int(value)
            else:
                stats[_METRICS[name]] = int(value)
        return gateways


def _with_bins(gateway: _Gateway) -> dict[str, Stats]:
    """Return the statistics by cluster, with cumulative buckets turned into separate bins."""
    by_cluster = {name: dict(stats) for name, stats in gateway.clusters.items()}
    for name, buckets in gateway.buckets.items():
        lower, below = 0.0, 0
        for upper, count in sorted(buckets.items()):
            by_cluster[name][f"{BIN}{lower:g}"] = count - below
            lower, below = upper, count
    return by_cluster


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
