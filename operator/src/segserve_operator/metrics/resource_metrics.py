"""Prometheus metrics of an operator's work: whether it looks, which models are ready, what it cannot write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.core.world.observed import EffectFailure


class ResourceMetrics:
    """Gauges of models and pools, which are told anew before each scrape, and of the process that decides for them."""

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
        """Count a model, `key` being its namespace, pool and name; `groups` are those that are watched, by role."""
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
