"""What the operator counts, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from segserve_operator.adapters.kube.api import MODELS, POOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from segserve_operator.adapters.kube.api import Kind
    from segserve_operator.adapters.kube.view import View

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(slots=True)
class Metrics:
    """Counters of one process, in a registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    passes: Counter = field(init=False)
    pass_seconds: Histogram = field(init=False)
    requests: Counter = field(init=False)
    leader: Gauge = field(init=False)
    watch_age: Gauge = field(init=False)
    models: Gauge = field(init=False)
    pools: Gauge = field(init=False)

    def __post_init__(self) -> None:
        to = self.registry
        self.passes = Counter("segserve_reconcile_passes", "Passes over pools.", ["outcome"], registry=to)
        self.pass_seconds = Histogram("segserve_reconcile_seconds", "Time of a pass.", buckets=_SECONDS, registry=to)
        self.requests = Counter(
            "segserve_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "kind", "code"],
            registry=to,
        )
        self.leader = Gauge("segserve_is_leader", "1 where this process may write.", registry=to)
        self.watch_age = Gauge("segserve_watch_age_seconds", "Time since the view was last audited.", registry=to)
        self.models = Gauge("segserve_models", "Models.", ["namespace", "pool", "ready"], registry=to)
        self.pools = Gauge("segserve_pools", "Pools.", ["namespace", "ready"], registry=to)

    def passed(self, outcome: str, seconds: float) -> None:
        """Count a pass."""
        self.passes.labels(outcome).inc()
        self.pass_seconds.observe(seconds)

    def called(self, verb: str, kind: Kind, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, kind.name, str(code)).inc()

    def look(self, view: View) -> None:
        """Count what there is now."""
        self.models.clear()
        self.pools.clear()
        for key in view.pools():
            for model in view.of_pool(MODELS, key):
                self.models.labels(key.namespace, key.pool, _ready(model)).inc()
            for pool in view.of_pool(POOLS, key):
                self.pools.labels(key.namespace, _ready(pool)).inc()


def _ready(found: Mapping[str, Any]) -> str:
    conditions: Iterable[Mapping[str, str]] = (found.get("status") or {}).get("conditions") or ()
    return next((said["status"] for said in conditions if said["type"] == "Ready"), "Unknown")
