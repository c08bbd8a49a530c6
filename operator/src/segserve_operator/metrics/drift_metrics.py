"""Prometheus metrics of drift: how far a model's images and answers are from its reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.core.drift.watch import DriftWatch

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
