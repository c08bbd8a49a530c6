"""Prometheus metrics of the operator, and the HTTP endpoints that serve them and its health."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from segserve_common.http.listening import listen_anywhere
from segserve_common.kube.kinds import MODELS, POOLS, Kind
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.api.rollout_policy import Slo
from segserve_operator.core.models.observed import EffectFailure
from segserve_operator.rollout_metrics import RolloutMetrics
from segserve_operator.stored_sizes import StoredSizes

_DEFAULT_ERROR_PERCENT = Slo().error_percent
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(slots=True)
class Metrics:
    """Metrics of one process, in a registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    passes: Counter = field(init=False)
    pass_seconds: Histogram = field(init=False)
    requests: Counter = field(init=False)
    leader: Gauge = field(init=False)
    watch_age: Gauge = field(init=False)
    models: Gauge = field(init=False)
    pools: Gauge = field(init=False)
    groups: Gauge = field(init=False)
    slo: Gauge = field(init=False)
    failing: Gauge = field(init=False)
    rollouts: RolloutMetrics = field(init=False)
    stored: StoredSizes = field(init=False)

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
        of_model = ["namespace", "pool", "model"]
        text = "1 for the group in which a model with an SLO or a rollout has a revision of that role."
        self.groups = Gauge("segserve_model_group", text, [*of_model, "group", "role"], registry=to)
        text = "Share of requests that may fail, as a model's SLO says."
        self.slo = Gauge("segserve_slo_error_ratio", text, of_model, registry=to)
        text = "Writes that failed and are tried again, by the kind of the action."
        self.failing = Gauge("segserve_failing_effects", text, ["namespace", "pool", "effect"], registry=to)
        self.rollouts = RolloutMetrics(to)
        self.stored = StoredSizes(to)

    def passed(self, outcome: str, seconds: float) -> None:
        """Count a pass."""
        self.passes.labels(outcome).inc()
        self.pass_seconds.observe(seconds)

    def called(self, verb: str, kind: Kind, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, kind.name, str(code)).inc()

    def observe(self, view: View) -> None:
        """Set the gauges to the current numbers of objects."""
        for gauge in (self.models, self.pools, self.groups, self.slo):
            gauge.clear()
        for key in view.pools():
            for model in view.of_pool(MODELS, key):
                self.models.labels(key.namespace, key.pool, _ready(model)).inc()
                self._look_at((key.namespace, key.pool, model["metadata"]["name"]), model)
            for pool in view.of_pool(POOLS, key):
                self.pools.labels(key.namespace, _ready(pool)).inc()
        self.rollouts.show()
        self.stored.observe(view)

    def observe_failures(self, failures: Mapping[PoolKey, Collection[EffectFailure]]) -> None:
        """Set the gauge to the current numbers of failing effects."""
        self.failing.clear()
        for key, each in failures.items():
            for failure in each:
                self.failing.labels(key.namespace, key.pool, failure.kind).inc()

    def _look_at(self, labels: tuple[str, str, str], model: Mapping[str, Any]) -> None:
        spec, roles = model.get("spec") or {}, (model.get("status") or {}).get("roles") or {}
        if "slo" in spec:
            self.slo.labels(*labels).set((spec["slo"] or {}).get("errorPercent", _DEFAULT_ERROR_PERCENT) / 100)
        if "slo" in spec or "rollout" in spec:
            for role, holder in roles.items():
                if holder and holder.get("group"):
                    self.groups.labels(*labels, holder["group"], role).set(1)


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
