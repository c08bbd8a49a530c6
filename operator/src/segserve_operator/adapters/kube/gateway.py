"""Gateways of one pool: a plan in ConfigMaps, followed and reported on by the sidecar of each Envoy."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from segserve_common.http.guard import gather_few
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, PODS
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    ENVOY_CONTAINER,
    GATEWAY,
    INTERNAL_PORT,
    SHARDS,
    object_name,
    plan_name,
    reports_name,
)
from segserve_common.kube.shards import VERSION_KEY, content_of, read_json, shard_of, unpack
from segserve_operator.adapters.kube import pods
from segserve_operator.adapters.kube.accounts import with_valid_tokens
from segserve_operator.adapters.kube.api import attempt_all
from segserve_operator.adapters.kube.children import apply_differing, find_drift
from segserve_operator.adapters.kube.objects import gateway_objects, gateway_url, plan_config_map
from segserve_operator.adapters.kube.pods import pod_failure
from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.samples.prometheus import PrometheusError, PrometheusSamples
from segserve_operator.adapters.traffic.envoy_auth import CREDENTIALS
from segserve_operator.adapters.traffic.envoy_tls import CERTIFICATE
from segserve_operator.adapters.traffic.plans import load_plan, pack_plan
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.traffic import TrafficPlan, TrafficState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.objects import PoolContext
    from segserve_operator.adapters.kube.view import PoolKey, View
    from segserve_operator.core.rollout.counters import Sample
    from segserve_operator.core.traffic import Route

CHANGED_KEY: Final = "changed"
log = logging.getLogger("segserve")


@dataclass(slots=True)
class ClusterTraffic:
    """Publishes the plan of one pool's gateways, and observes which plan they follow.

    A plan is split into shards, each a plan of some of the models; the servers are in the first. `decoded` caches
    parsed shards by their packed text, `silent` has the gateways that did not report their counts. If `prometheus` is
    an address, samples come from there. `clock` returns Unix time in seconds.
    """

    api: Api
    view: View
    contexts: PoolContexts
    key: PoolKey
    decoded: dict[str, TrafficPlan]
    silent: set[str] = field(default_factory=set)
    clock: Callable[[], float] = time.time
    prometheus: str = ""

    @property
    def url(self) -> str:
        """The URL for clients in the cluster, empty without a pool."""
        context = self.contexts.get(self.key)
        return gateway_url(context) if context is not None else ""

    async def observe(self) -> TrafficState:
        """Return the published plan, and the models whose routes some gateway does not follow yet."""
        context = self.contexts.get(self.key)
        if context is None:
            return TrafficState(None)
        shards = [self._map(plan_name(self.key.pool, shard)) for shard in range(SHARDS)]
        packed = [content_of(config_map) if config_map is not None else None for config_map in shards]
        gateways = self._gateways()
        # The Service sends nothing to one whose node is lost, and it may follow nothing for as long as its pod exists.
        followers = [pod for pod in gateways if not pods.is_cut_off(pod)]
        reports = self._reports(followers)
        deployment = self.view.get(DEPLOYMENTS, self.key.namespace, object_name(self.key.pool, GATEWAY))
        return TrafficState(
            plan=self._plan(packed),
            active={route: 1 for each in reports.values() for route in each.draining},
            pending=frozenset().union(
                *(self._pending(*numbered, followers, reports) for numbered in enumerate(shards))
            ),
            answering=any(map(pods.is_ready, gateways)),
            intact=not any(True for _ in find_drift(self.view, self.key, self._objects(context))),
            problem=_rejection(reports) or pod_failure(deployment, gateways),
        )

    def _plan(self, packed: Iterable[str | None]) -> TrafficPlan | None:
        parts = [self._shard(text) for text in packed]
        readable = [part for part in parts if part is not None]
        return TrafficPlan.joined(readable) if len(readable) == len(parts) else None

    def _shard(self, packed: str | None) -> TrafficPlan | None:
        if packed is None:
            return None
        if packed not in self.decoded:
            try:
                self.decoded[packed] = load_plan(unpack(packed))
            except (ValueError, TypeError, LookupError):
                return None  # edited by another client; the next pass writes it again
        return self.decoded[packed]

    def _pending(
        self, shard: int, config_map: Json | None, gateways: Iterable[Json], reports: Mapping[str, pods.GatewayReport]
    ) -> frozenset[str]:
        """Return the models whose present route some gateway does not follow yet."""
        if config_map is None:
            return frozenset()
        version = (config_map.get("data") or {}).get(VERSION_KEY)
        for pod in gateways:
            report = reports.get(pod["metadata"]["name"])
            followed = report.shards.get(str(shard)) if report is not None else None
            if pods.container_runs(pod, ENVOY_CONTAINER) and followed != version:
                return changed_models(config_map)
        return frozenset()

    def _reports(self, gateways: Iterable[Json]) -> dict[str, pods.GatewayReport]:
        packed = pods.reports_of(self._map(reports_name(self.key.pool, GATEWAY)))
        read = {pod["metadata"]["name"]: pods.read_report(packed.get(pod["metadata"]["name"]), pod) for pod in gateways}
        return {name: report for name, report in read.items() if report is not None}

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> dict[str, Sample]:
        """Return the counters of each gateway pod by model; pods that do not answer in time are left out."""
        if self.prometheus:
            return await self._prometheus_samples(models)
        ready = self._ready() if models else {}
        if not ready:
            return {model: {} for model in models}
        now_s = self.clock()
        async with wire.pod_client() as client:
            requests = (wire.fetch_counts(client, host, models, now_s) for host in ready.values())
            by_pod = dict(zip(ready, await gather_few(requests), strict=True))
        silent = {name for name, counts in by_pod.items() if not counts}
        for name in sorted(silent - self.silent):
            log.warning("%s/%s: gateway %s reports no counts", self.key.namespace, self.key.pool, name)
        self.silent.clear()
        self.silent.update(silent)
        return {model: {name: counts[model] for name, counts in by_pod.items() if model in counts} for model in models}

    async def _prometheus_samples(self, models: Mapping[str, tuple[str, str]]) -> dict[str, Sample]:
        source = PrometheusSamples(self.prometheus, {"namespace": self.key.namespace, "pool": self.key.pool})
        try:
            return await source.samples(models, self.clock())
        except PrometheusError as error:
            log.warning("%s", error)
            return {model: {} for model in models}

    async def internal_url(self) -> str | None:
        """Return the URL of a ready gateway's internal port, None if no gateway is ready."""
        hosts = sorted(self._ready().values())
        return f"http://{wire.bracketed(hosts[0])}:{INTERNAL_PORT}" if hosts else None

    def _ready(self) -> dict[str, str]:
        """Return the addresses of the ready gateway pods by name."""
        ready = filter(pods.is_ready, self._gateways())
        return {pod["metadata"]["name"]: host for pod in ready if (host := pods.address(pod)) is not None}

    def _gateways(self) -> list[Json]:
        deployment = object_name(self.key.pool, GATEWAY)
        return [
            pod
            for pod in self.view.of_pool(PODS, self.key)
            if (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == GATEWAY and _is_of(deployment, pod)
        ]

    async def apply(self, plan: TrafficPlan) -> None:
        """Publish a plan, then repair the gateway's objects. A shard that changed since the view read it is kept.

        All shards and the objects are tried, even if some are refused.
        """
        context = self.contexts.get(self.key)
        if context is None:
            return
        state = await self.observe()
        used, manifests = [], []
        for shard in range(SHARDS):
            routes = tuple(route for route in plan.routes if shard_of(route.model) == shard)
            config_map = self._map(plan_name(self.key.pool, shard))
            content = self._content(config_map, TrafficPlan(routes, plan.servers if shard == 0 else ()))
            used.append(content)
            changed = self._changed(config_map, content, routes, state.pending)
            manifests.append(plan_config_map(context, shard, content, sorted(changed)))
        for text in self.decoded.keys() - set(used):
            del self.decoded[text]
        parts = [*(([manifest], True) for manifest in manifests), (self._objects(context), False)]
        await attempt_all(apply_differing(self.api, self.view, self.key, part, fenced=fenced) for part, fenced in parts)

    def _objects(self, context: PoolContext) -> tuple[Json, ...]:
        return with_valid_tokens(self.view, self.key, gateway_objects(context))

    def _content(self, config_map: Json | None, part: TrafficPlan) -> str:
        present = content_of(config_map) if config_map is not None else None
        # Packing a thousand routes is slow, and most passes change none.
        if present is not None and self._shard(present) == part:
            return present
        return pack_plan(part)

    def _changed(
        self, config_map: Json | None, content: str, routes: Iterable[Route], pending: frozenset[str]
    ) -> frozenset[str]:
        """Return the models whose route differs between this content and a version that a gateway may still follow."""
        if config_map is None:
            return frozenset(route.model for route in routes)
        if content_of(config_map) == content:
            return changed_models(config_map)
        former = self._shard(content_of(config_map)) or TrafficPlan()
        old, new = {route.model: route for route in former.routes}, {route.model: route for route in routes}
        changed = frozenset(model for model in old.keys() | new.keys() if old.get(model) != new.get(model))
        return changed | (changed_models(config_map) & pending)

    def _map(self, name: str) -> Json | None:
        config_map = self.view.get(CONFIG_MAPS, self.key.namespace, name)
        return None if config_map is None or pods.is_terminating(config_map) else config_map


def changed_models(config_map: Mapping[str, Any]) -> frozenset[str]:
    """Return the models of a shard for which gateways may still follow an earlier route."""
    try:
        changed = read_json(((config_map.get("data") or {}).get(CHANGED_KEY) or "[]").encode())
        return frozenset(name for name in changed if isinstance(name, str))
    except (ValueError, TypeError):
        return frozenset()  # edited by another client; the next pass writes it again


def _is_of(deployment: str, pod: Mapping[str, Any]) -> bool:
    """Return whether a pod belongs to a Deployment; labels do not prove it, as any client may set them.

    A pod that names a ReplicaSet of the Deployment is deleted as garbage unless the uid is right as well, and then the
    Deployment counts it as its own.
    """
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner["kind"] == "ReplicaSet" and owner["name"].rpartition("-")[0] == deployment for owner in owners)


def _rejection(reports: Mapping[str, pods.GatewayReport]) -> FailureReason | None:
    for name, report in sorted(reports.items()):
        for shard, why in sorted(report.refused.items()):
            if shard == CERTIFICATE:
                return FailureReason("CertificateRefused", f"gateway {name}: {why}")
            if shard == CREDENTIALS:
                return FailureReason("CredentialsRefused", f"gateway {name}: {why}")
            return FailureReason("PlanRefused", f"gateway {name} refuses shard {shard}: {why}")
    return None
