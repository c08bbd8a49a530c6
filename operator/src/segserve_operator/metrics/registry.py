"""Prometheus metrics of the operator, and the HTTP endpoints that serve them and its health."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from segserve_common.http.listening import listen_anywhere
from segserve_common.kube.kinds import MODELS, POOLS, Kind
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.core.world.observed import ModelObserved
from segserve_operator.metrics.cost_metrics import CostMetrics
from segserve_operator.metrics.drift_metrics import DriftMetrics
from segserve_operator.metrics.evaluation_metrics import EvaluationMetrics
from segserve_operator.metrics.resource_metrics import ResourceMetrics
from segserve_operator.metrics.rollout_metrics import RolloutMetrics
from segserve_operator.metrics.scaling_metrics import ScalingMetrics
from segserve_operator.metrics.slo_metrics import SloMetrics
from segserve_operator.metrics.stored_sizes import StoredSizes
from segserve_operator.service import RolloutCache

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        to = self.registry = CollectorRegistry()
        self.passes = Counter("segserve_reconcile_passes", "Passes over pools.", ["outcome"], registry=to)
        self.pass_seconds = Histogram("segserve_reconcile_seconds", "Time of a pass.", buckets=_SECONDS, registry=to)
        self.requests = Counter(
            "segserve_api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "kind", "code"],
            registry=to,
        )
        self.resources = ResourceMetrics(to)
        self.pools = Gauge("segserve_pools", "Pools.", ["namespace", "ready"], registry=to)
        self.slo = SloMetrics(to)
        self.cost = CostMetrics(to)
        self.scaling = ScalingMetrics(to)
        self.rollouts = RolloutMetrics(to)
        self.drift = DriftMetrics(to)
        self.evaluation = EvaluationMetrics(to)
        self.stored = StoredSizes(to)

    def passed(self, outcome: str, seconds: float) -> None:
        """Count a pass."""
        self.passes.labels(outcome).inc()
        self.pass_seconds.observe(seconds)

    def called(self, verb: str, kind: Kind, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, kind.name, str(code)).inc()

    def observe_pass(self, key: PoolKey, models: Iterable[ModelObserved], kept: RolloutCache, now_s: float) -> None:
        """Note what a pass found and keeps; of a pool that is gone that is nothing."""
        states = {model.name: model.status.rollout for model in models if model.status.rollout is not None}
        self.rollouts.observe(key.namespace, key.pool, states, kept.records)
        self.rollouts.observe_self_tests(key.namespace, key.pool, kept.self_tests)
        self.drift.observe(key.namespace, key.pool, kept.drifts)
        self.scaling.observe_requests(key.namespace, key.pool, kept.load.history, now_s)

    def observe(self, view: View) -> None:
        """Set the gauges to the current numbers of objects."""
        self.resources.clear()
        self.pools.clear()
        self.slo.clear()
        self.cost.clear()
        self.scaling.clear()
        self.evaluation.clear()
        for key in view.pools():
            for model in view.of_pool(MODELS, key):
                labels = (key.namespace, key.pool, model["metadata"]["name"])
                spec, roles = model.get("spec") or {}, (model.get("status") or {}).get("roles") or {}
                if "slo" in spec:
                    self.slo.observe(labels, spec["slo"] or {})
                watched = roles if "slo" in spec or "rollout" in spec else {}
                groups = {role: holder["group"] for role, holder in watched.items() if holder and holder.get("group")}
                self.resources.observe(labels, _ready(model), groups)
                stable = (roles.get("stable") or {}).get("revision")
                self.evaluation.observe(labels, model["metadata"].get("annotations") or {}, stable)
            for pool in view.of_pool(POOLS, key):
                self.pools.labels(key.namespace, _ready(pool)).inc()
                self.cost.observe(key.namespace, key.pool, (pool.get("spec") or {}).get("cost") or {})
                self.scaling.observe(key.namespace, key.pool, pool)
        self.rollouts.show()
        self.drift.show()
        self.stored.observe(view)


def _ready(item: Mapping[str, Any]) -> str:
    conditions: Iterable[Mapping[str, str]] = (item.get("status") or {}).get("conditions") or ()
    return next((condition["status"] for condition in conditions if condition["type"] == "Ready"), "Unknown")


@asynccontextmanager
async def health_server(
    port: int, trouble: Callable[[], str | None], registry: CollectorRegistry, refresh: Callable[[], None]
) -> AsyncIterator[None]:
    """Serve /healthz (503 with the problem, if there is one) and /metrics while the block runs."""

    async def healthz(_: web.Request) -> web.Response:
        why = trouble()
        return web.Response(status=503 if why else 200, text=why or "ok")

    async def metrics(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listen_anywhere(port)).start()  # kubelet and Prometheus come from outside the pod
        yield
    finally:
        await runner.cleanup()
