"""Reconciles the pools of a cluster: one `Service` per pass, over adapters that read the shared view."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import ApiError
from segserve_common.kube.kinds import GATEWAY_ROUTES
from segserve_operator.adapters.checks.context import CheckContext, Services
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner
from segserve_operator.adapters.kube.api import Api
from segserve_operator.adapters.kube.children import apply_differing, kind_of
from segserve_operator.adapters.kube.contexts import OtherFormatError, PoolContexts, keep_guard
from segserve_operator.adapters.kube.fleet import ClusterFleet, FleetCache
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.adapters.kube.objects import Defaults
from segserve_operator.adapters.kube.objects.gateway import route_objects
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.adapters.kube.resources import ClusterResources
from segserve_operator.adapters.kube.store import ClusterStore, StoreCache
from segserve_operator.adapters.kube.view import ModelInterner, PoolKey, View, read_known
from segserve_operator.adapters.notify.messages import Target
from segserve_operator.adapters.notify.notifier import Notifier, PoolAnnouncer, targets
from segserve_operator.api.meta import SpecError
from segserve_operator.core.models.roles import next_due_s
from segserve_operator.core.traffic import TrafficPlan
from segserve_operator.core.world.observed import EffectFailure
from segserve_operator.metrics.registry import Metrics
from segserve_operator.service import ActionLog, RolloutCache, Service
from segserve_operator.worker import ReconcileResult

if TYPE_CHECKING:
    pass


MIN_DUE_S: Final = 1.0
GUARD_RETRY_S: Final = 1.0

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Dependencies of passes beside the objects of the API.

    `notifier` sends notifications, `services` are the ones that gates call. If `prometheus` is an address,
    gateways' counters come from there.
    """

    notifier: Notifier
    metrics: Metrics
    services: Services
    prometheus: str = ""


@dataclass(slots=True)
class PoolCache:
    """State kept between passes over one pool: decoded objects and the evidence of the last seconds."""

    check_runner: BackgroundCheckRunner
    announcer: PoolAnnouncer
    failures: dict[tuple[str, str], EffectFailure] = field(default_factory=dict)
    rollout_cache: RolloutCache = field(default_factory=RolloutCache)
    interner: ModelInterner = field(default_factory=ModelInterner)
    parsed: StoreCache = field(default_factory=StoreCache)
    decoded: FleetCache = field(default_factory=FleetCache)
    plans: dict[str, TrafficPlan] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    action_log: ActionLog = field(default_factory=ActionLog)


class PoolReconciler:
    """Reconciles pools, one at a time. `clock` returns Unix time in seconds."""

    def __init__(
        self, api: Api, view: View, defaults: Defaults, dependencies: Dependencies, clock: Callable[[], float]
    ) -> None:
        self._api = api
        self._view = view
        self._contexts = PoolContexts(view, defaults)
        self._dependencies = dependencies
        self._clock = clock
        self._caches: dict[PoolKey, PoolCache] = {}

    async def reconcile(self, key: PoolKey) -> ReconcileResult:
        """Make one pass over a pool; errors of an API that answers nothing, and of a spec, propagate."""
        cache = self._caches.get(key) or self._begin(key)
        await read_known(self._view, self._api, key)
        attempts = _attempts(cache.failures)
        store = ClusterStore(self._api, self._view, self._contexts, key, cache.parsed, cache.interner, self._clock)
        try:
            self._contexts.get(key)
        except SpecError as error:
            if not isinstance(error, OtherFormatError):  # that version writes the status
                await store.refuse(error)
            raise
        fleet = ClusterFleet(self._api, self._view, self._contexts, key, cache.decoded, cache.interner, self._clock)
        traffic = self._traffic(key, cache.plans, cache.silent)
        service = Service(
            store=store,
            fleet=fleet,
            traffic=traffic,
            clock=self._clock,
            check_runner=cache.check_runner,
            announcer=cache.announcer,
            rollout_cache=cache.rollout_cache,
            failures=cache.failures,
        )
        try:
            actions = await service.run_once()
        except ApiError:
            await fleet.tidy_reports()
            raise
        tidied, due_s = await fleet.tidy_reports(), []
        try:
            tidied += await keep_guard(self._api, self._view, key)
            tidied += await keep_routes(self._api, self._view, self._contexts, key)
        except ApiError as error:
            # What serves does not depend on it, and the other models' next pass must not wait for it.
            log.warning("%s/%s: the pool's finalizer or routes were not written: %s", key.namespace, key.pool, error)
            due_s.append(GUARD_RETRY_S)
        for line in cache.action_log.new_lines(actions):
            log.info("%s/%s: %s", key.namespace, key.pool, line)
        for line in cache.action_log.new_failures(cache.failures):
            log.warning("%s/%s: %s", key.namespace, key.pool, line)
        models = await store.models()
        tidied += await store.keep_notes(models)
        # Statuses report what failed in the next pass.
        writes = len(actions) + tidied + (attempts != _attempts(cache.failures))
        now_s = self._clock()
        self._dependencies.metrics.observe_pass(key, models, cache.rollout_cache)
        due_s.append(next_due_s(models, now_s))
        due_s += [max(failure.retry_s - now_s, MIN_DUE_S) for failure in cache.failures.values()]
        due_s.append(max(cache.rollout_cache.repeat_s - now_s, MIN_DUE_S))
        at_rest = not cache.rollout_cache.waits and not writes and not fleet.waits_for_agents()
        return ReconcileResult(writes, min(due_s), at_rest=at_rest)

    def _begin(self, key: PoolKey) -> PoolCache:
        plans: dict[str, TrafficPlan] = {}
        traffic = self._traffic(key, plans, set())
        context = CheckContext(
            InternalGateway(traffic.internal_url),
            ClusterResources(self._view, key),
            self._dependencies.services,
            f"{key.namespace}/{key.pool}",
        )
        announcer = PoolAnnouncer(
            self._dependencies.notifier, key.namespace, partial(self._notification_targets, key), self._clock
        )
        return self._caches.setdefault(key, PoolCache(BackgroundCheckRunner(context), announcer, plans=plans))

    def _traffic(self, key: PoolKey, plans: dict[str, TrafficPlan], silent: set[str]) -> ClusterTraffic:
        prometheus = self._dependencies.prometheus
        return ClusterTraffic(self._api, self._view, self._contexts, key, plans, silent, prometheus=prometheus)

    def _notification_targets(self, key: PoolKey) -> tuple[Target, ...]:
        context = self._contexts.get(key)
        return targets(context.spec, key.namespace) if context is not None else ()

    def wanted(self, key: PoolKey) -> bool:
        """Return whether a pool still exists; drops the cache of one that does not."""
        wanted = self._view.has_pool(key)
        if not wanted and key in self._caches:
            cache = self._caches.pop(key)
            cache.check_runner.schedule(())
            self._dependencies.metrics.observe_pass(key, (), RolloutCache())
        return wanted

    def failures(self) -> Mapping[PoolKey, Collection[EffectFailure]]:
        """Return what failed in the last passes, by pool."""
        return {key: cache.failures.values() for key, cache in self._caches.items()}

    async def close(self) -> None:
        """Cancel running checks, and send the remaining notifications."""
        for cache in self._caches.values():
            await cache.check_runner.close()
        await self._dependencies.notifier.aclose()


def _attempts(failures: Mapping[tuple[str, str], EffectFailure]) -> dict[tuple[str, str], int]:
    return {key: failure.attempts for key, failure in failures.items()}


async def keep_routes(api: Api, view: View, contexts: PoolContexts, key: PoolKey) -> int:
    """Apply a pool's routes, delete routes that it no longer specifies, and return the number of writes.

    On a cluster without the Gateway API nothing is written, and a pool that specifies routes is reported in the log.
    """
    context = contexts.get(key)
    if context is None:
        return 0  # they go with their owner
    wanted = route_objects(context)
    if not set(GATEWAY_ROUTES) <= set(view.kinds):
        if wanted:
            log.warning("%s/%s: the cluster had no Gateway API (v1) when the operator began", key.namespace, key.pool)
        return 0
    written = await apply_differing(api, view, key, wanted)
    names = {(kind_of(manifest), manifest["metadata"]["name"]) for manifest in wanted}
    former = [
        (kind, live["metadata"])
        for kind in GATEWAY_ROUTES
        for live in view.of_pool(kind, key)
        if (kind, live["metadata"]["name"]) not in names and not is_terminating(live)
    ]
    for kind, metadata in former:
        await api.delete(kind, key.namespace, metadata["name"], uid=metadata["uid"])
    return written + len(former)
