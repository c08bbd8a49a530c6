"""Prometheus metrics of the operator, and the HTTP endpoints that serve them and its health."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from segserve_common.http.listening import listen_anywhere
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS, Kind
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY
from segserve_common.kube.shards import CONTENT_KEY
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.core.world.observed import ModelObserved
from segserve_operator.metrics.resource_gauges import DriftMetrics, ResourceMetrics, SloMetrics
from segserve_operator.metrics.rollout_metrics import RolloutMetrics
from segserve_operator.service import RolloutCache

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

_KINDS: Final = (CONFIG_MAPS, MODELS, POOLS)


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
        self.rollouts = RolloutMetrics(to)
        self.drift = DriftMetrics(to)
        self.stored = StoredSizes(to)

    def passed(self, outcome: str, seconds: float) -> None:
        """Count a pass."""
        self.passes.labels(outcome).inc()
        self.pass_seconds.observe(seconds)

    def called(self, verb: str, kind: Kind, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, kind.name, str(code)).inc()

    def observe_pass(self, key: PoolKey, models: Iterable[ModelObserved], kept: RolloutCache) -> None:
        """Note what a pass found and keeps; of a pool that is gone that is nothing."""
        states = {model.name: model.status.rollout for model in models if model.status.rollout is not None}
        self.rollouts.observe(key.namespace, key.pool, states, kept.records)
        self.drift.observe(key.namespace, key.pool, kept.drifts)

    def observe(self, view: View) -> None:
        """Set the gauges to the current numbers of objects."""
        self.resources.clear()
        self.pools.clear()
        self.slo.clear()
        for key in view.pools():
            for model in view.of_pool(MODELS, key):
                labels = (key.namespace, key.pool, model["metadata"]["name"])
                spec, roles = model.get("spec") or {}, (model.get("status") or {}).get("roles") or {}
                if "slo" in spec:
                    self.slo.observe(labels, spec["slo"] or {})
                watched = roles if "slo" in spec or "rollout" in spec else {}
                groups = {role: holder["group"] for role, holder in watched.items() if holder and holder.get("group")}
                self.resources.observe(labels, _ready(model), groups)
            for pool in view.of_pool(POOLS, key):
                self.pools.labels(key.namespace, _ready(pool)).inc()
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


class StoredSizes:
    """A gauge of the largest object of each pool and purpose: reports, assignment, plan, status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Bytes of the largest object of its purpose: reports, assignment, plan, or the status of a resource."
        self._gauge = Gauge("segserve_stored_bytes", text, ["namespace", "pool", "purpose"], registry=registry)
        self._sizes: dict[str, tuple[str, str, int]] = {}

    def observe(self, view: View) -> None:
        """Set the gauge to the present sizes; only objects that changed since the last time are measured."""
        self._gauge.clear()
        sizes: dict[str, tuple[str, str, int]] = {}
        for key in view.pools():
            largest: dict[str, int] = {}
            for kind, item in _objects(view, key):
                uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
                known = self._sizes.get(uid)
                sizes[uid] = known if known is not None and known[0] == version else (version, *_measured(kind, item))
                _, purpose, size = sizes[uid]
                largest[purpose] = max(largest.get(purpose, 0), size)
            for purpose, size in largest.items():
                self._gauge.labels(key.namespace, key.pool, purpose).set(size)
        self._sizes = sizes


def _objects(view: View, key: PoolKey) -> Iterator[tuple[Kind, Mapping[str, Any]]]:
    for kind in _KINDS:
        if kind in view.kinds:
            for item in view.of_pool(kind, key):
                yield kind, item


def _measured(kind: Kind, item: Mapping[str, Any]) -> tuple[str, int]:
    if kind != CONFIG_MAPS:
        return "status", len(json.dumps(item.get("status") or {}))
    binary, plain = item.get("binaryData") or {}, item.get("data") or {}
    size = sum(len(text) * 3 // 4 for text in binary.values()) + sum(len(text.encode()) for text in plain.values())
    if CONTENT_KEY not in binary:
        return "reports", size
    is_plan = (item["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == GATEWAY
    return ("plan" if is_plan else "assignment"), size
