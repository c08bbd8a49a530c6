"""Prometheus metrics of what models' SLOs allow, made so that rules can multiply gateways' counts by them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.api.rollout_policy import Slo

LATENCY_EDGES_MS: Final = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000),
    *(60000, 300000, 600000, 1800000, 3600000),
)
"""Upper edges of the buckets in which Envoy counts latencies for Prometheus."""
PERCENTILES: Final = (50, 95, 99)
_DEFAULT_ERROR_PERCENT: Final = Slo().error_percent
_MODEL: Final = ("namespace", "pool", "model")


class SloMetrics:
    """Gauges of each model with `spec.slo`; a latency objective is called after its percentile, such as `p95`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry, objective = registry, (*_MODEL, "objective")
        self.errors = self._gauge("error_ratio", "Share of requests that may fail, as a model's SLO says.", _MODEL)
        self.slow = self._gauge("slow_ratio", "Share of requests that may take longer than the objective.", objective)
        self.latency = self._gauge("latency_seconds", "Latency of the objective.", objective)
        text = "Share of Envoy's bucket of latencies up to `le` ms, by which the fast requests are interpolated."
        self.weight = self._gauge("latency_weight", text, (*objective, "le"))

    def clear(self) -> None:
        """Forget all models."""
        for gauge in (self.errors, self.slow, self.latency, self.weight):
            gauge.clear()

    def observe(self, key: tuple[str, str, str], slo: Mapping[str, Any]) -> None:
        """Set the gauges of a model, `key` being its namespace, pool and name, to its `spec.slo`."""
        self.errors.labels(*key).set(slo.get("errorPercent", _DEFAULT_ERROR_PERCENT) / 100)
        for percentile in PERCENTILES:
            latency_ms = slo.get(f"p{percentile}Milliseconds")
            if latency_ms:
                objective = (*key, f"p{percentile}")
                self.slow.labels(*objective).set((100 - percentile) / 100)
                self.latency.labels(*objective).set(latency_ms / 1000)
                for edge_ms, weight in latency_weights(latency_ms):
                    self.weight.labels(*objective, f"{edge_ms:.32g}").set(weight)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"segserve_slo_{name}", text, labels, registry=self._registry)


def latency_weights(latency_ms: float) -> Iterator[tuple[float, float]]:
    """Yield edges and weights, whose products with the buckets sum up to the requests below a latency.

    Buckets are cumulative; within one, requests are taken to be spread evenly, as `histogram_quantile` does.
    """
    place = bisect_left(LATENCY_EDGES_MS, latency_ms)
    upper = LATENCY_EDGES_MS[place]
    lower = LATENCY_EDGES_MS[place - 1] if place else 0.0
    share = (latency_ms - lower) / (upper - lower)
    if place and share < 1:
        yield lower, 1 - share
    yield upper, share
