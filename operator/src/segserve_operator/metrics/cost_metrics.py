"""Prometheus metrics of what pools' resources cost, made so that rules can multiply the use of servers by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.api.cost import Cost

RESOURCES: Final = ("cpuHour", "gpuHour", "memoryGiBHour")
_POOL: Final = ("namespace", "pool", "currency")
_CURRENCY: Final = Cost().currency


class CostMetrics:
    """Gauges of each pool with `spec.cost`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Price of an hour of a resource, as spec.cost of the pool says."
        self.price = Gauge("segserve_cost_price", text, (*_POOL, "resource"), registry=registry)
        text = "What the pool's servers may cost in 30 days."
        self.budget = Gauge("segserve_cost_monthly_budget", text, _POOL, registry=registry)

    def clear(self) -> None:
        """Forget all pools."""
        self.price.clear()
        self.budget.clear()

    def observe(self, namespace: str, pool: str, cost: Mapping[str, Any]) -> None:
        """Set the gauges of a pool to its `spec.cost`."""
        key = (namespace, pool, cost.get("currency", _CURRENCY))
        for resource in RESOURCES:
            if cost.get(resource):
                self.price.labels(*key, resource).set(cost[resource])
        if cost.get("monthlyBudget"):
            self.budget.labels(*key).set(cost["monthlyBudget"])
