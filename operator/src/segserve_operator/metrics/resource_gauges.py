"""Gauges of models and pools: SLOs, drift, and the operator's work, for rules and dashboards."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.api.rollout_policy import Slo
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.world.observed import EffectFailure

LATENCY_EDGES_MS: Final = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000),
    *(60000, 300000, 600000, 1800000, 3600000),
)
"""Upper edges of the buckets in which Envoy counts latencies for Prometheus."""
PERCENTILES: Final = (50, 95, 99)
_DEFAULT_ERROR_PERCENT: Final = Slo().error_percent
_MODEL: Final = ("namespace", "pool", "model")


class DriftMetrics:
    """Gauges of each model with `spec.drift`: one for the model, and two for each histogram, at most 184 of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry, histogram, to = registry, (*_MODEL, "histogram"), registry
        text = "1 while a model's images or answers differ from its reference; absent until that is known."
        self.drifting = Gauge("segserve_drifting", text, _MODEL, registry=to)
        text = "Population stability index of the last windows and the reference."
        self.psi = Gauge("segserve_drift_psi", text, histogram, registry=to)
        text = "Kullback-Leibler divergence of the last windows from the reference, in nats."
        self.kl = Gauge("segserve_drift_kl_nats", text, histogram, registry=to)
        self._pools: dict[tuple[str, str], Mapping[str, DriftWatch]] = {}
        self._shown: set[tuple[Gauge, tuple[str, ...]]] = set()

    def observe(self, namespace: str, pool: str, watches: Mapping[str, DriftWatch]) -> None:
        """Note a pool's watches by model. It is called after each pass: gauges are set by `show`."""
        self._pools[namespace, pool] = watches

    def show(self) -> None:
        """Set the gauges to the watches last observed, and no others; called before every scrape."""
        shown: set[tuple[Gauge, tuple[str, ...]]] = set()
        watches = {(*at, model): watch for at, each in self._pools.items() for model, watch in each.items()}
        for key, watch in watches.items():
            values: list[tuple[Gauge, float, tuple[str, ...]]] = []
            if watch.complete:
                values.append((self.drifting, float(bool(watch.found)), key))
            for histogram in watch.divergences():
                labels = (*key, histogram.name)
                values += [(self.psi, histogram.psi, labels), (self.kl, histogram.kl, labels)]
            for gauge, value, place in values:
                gauge.labels(*place).set(value)
                shown.add((gauge, place))
        for gauge, place in self._shown - shown:
            gauge.remove(*place)
        self._shown = shown


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


class ResourceMetrics:
    """Gauges of models and pools, which are set anew before each scrape, and of the process that decides for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        to = registry
        self.leader = Gauge("segserve_is_leader", "1 where this process may write.", registry=to)
        self.watch_age = Gauge("segserve_watch_age_seconds", "Time since the view was last audited.", registry=to)
        self.models = Gauge("segserve_models", "Models.", ["namespace", "pool", "ready"], registry=to)
        text = "1 for the group in which a model with an SLO or a rollout has a revision of that role."
        labels = ["namespace", "pool", "model", "group", "role"]
        self.groups = Gauge("segserve_model_group", text, labels, registry=to)
        text = "Writes that failed and are tried again, by the kind of the action."
        self.failing = Gauge("segserve_failing_effects", text, ["namespace", "pool", "effect"], registry=to)

    def clear(self) -> None:
        """Forget all models."""
        self.models.clear()
        self.groups.clear()

    def observe(self, key: tuple[str, str, str], ready: str, groups: Mapping[str, str]) -> None:
        """Count a model, `key` being its namespace, pool and name; `groups` are the watched groups, by role."""
        namespace, pool, _ = key
        self.models.labels(namespace, pool, ready).inc()
        for role, group in groups.items():
            self.groups.labels(*key, group, role).set(1)

    def observe_failures(self, failures: Mapping[tuple[str, str], Iterable[EffectFailure]]) -> None:
        """Set the gauge to the current numbers of failing effects, by namespace and pool."""
        self.failing.clear()
        for (namespace, pool), each in failures.items():
            for failure in each:
                self.failing.labels(namespace, pool, failure.kind).inc()
