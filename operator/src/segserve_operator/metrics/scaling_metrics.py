"""Prometheus metrics of pools whose number of servers follows requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.core.models.scaling import NO_COUNTS_S
from segserve_operator.core.scaling import PANIC_WINDOW_S, LoadHistory

_POOL: Final = ("namespace", "pool")


class ScalingMetrics:
    """Gauges of each pool with `spec.scaling`: of its resource, and of the requests that the leader has counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Servers per group that are wanted by the requests that come."
        self.desired = Gauge("segserve_scaling_desired_servers", text, _POOL, registry=registry)
        text = "Largest number of servers per group, as spec.scaling of the pool says."
        self.maximum = Gauge("segserve_scaling_maximum_servers", text, _POOL, registry=registry)
        text = "Time in which a server starts and loads the models, as measured."
        self.startup = Gauge("segserve_scaling_startup_seconds", text, _POOL, registry=registry)
        text = "Requests in flight at the gateways, as a mean of six seconds; absent while none are counted."
        self.in_flight = Gauge("segserve_scaling_requests_in_flight", text, _POOL, registry=registry)
        text = "Requests that the servers that are ready may have in flight by the target."
        self.room = Gauge("segserve_scaling_target_requests_in_flight", text, _POOL, registry=registry)
        self._counted: dict[tuple[str, str], LoadHistory] = {}

    def observe_requests(self, namespace: str, pool: str, counted: LoadHistory, now_s: float) -> None:
        """Note a pool's requests, unless they are not counted now (Unix seconds). It is called after each pass."""
        if now_s - counted.at_s <= NO_COUNTS_S:
            self._counted[namespace, pool] = counted
        else:
            self._counted.pop((namespace, pool), None)

    def clear(self) -> None:
        """Empty the gauges, before each scrape."""
        for gauge in (self.desired, self.maximum, self.startup, self.in_flight, self.room):
            gauge.clear()

    def observe(self, namespace: str, pool: str, resource: Mapping[str, Any]) -> None:
        """Set the gauges of a pool to its `spec.scaling` and `status.scaling`, and to the requests last noted."""
        spec, status = ((resource.get(part) or {}).get("scaling") or {} for part in ("spec", "status"))
        counted = self._counted.get((namespace, pool))
        values = (
            (self.desired, status.get("desired")),
            (self.maximum, spec.get("maximum")),
            (self.startup, status.get("startupSeconds")),
            (self.in_flight, counted.in_flight(PANIC_WINDOW_S) if counted is not None else None),
            (self.room, counted.room if counted is not None else None),
        )
        for gauge, value in values:
            # Another release may write something else into the status.
            if spec and isinstance(value, int | float):
                gauge.labels(namespace, pool).set(value)
