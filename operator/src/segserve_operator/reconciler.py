"""One pass over one pool of the cluster: the service, over adapters that look at the shared view."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from segserve_builder.sources.access import Access
from segserve_operator.adapters.bundles.cluster import ClusterBundles, PodLogs
from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner
from segserve_operator.adapters.kube.api import Api
from segserve_operator.adapters.kube.fleet import ClusterFleet, Decoded
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.adapters.kube.known_models import KnownModels
from segserve_operator.adapters.kube.objects import Defaults, access_without_secrets, base_of
from segserve_operator.adapters.kube.resources import ClusterResources
from segserve_operator.adapters.kube.store import ClusterStore, Parsed
from segserve_operator.adapters.kube.target import PoolContexts
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.adapters.notify.announcer import PoolAnnouncer, targets
from segserve_operator.adapters.notify.messages import Target
from segserve_operator.adapters.notify.notifier import Notifier
from segserve_operator.caches import RolloutCache
from segserve_operator.core.models.roles import next_due_s
from segserve_operator.core.traffic import TrafficPlan
from segserve_operator.rollout_metrics import RolloutMetrics
from segserve_operator.service import Service, brief
from segserve_operator.worker import ReconcileResult

log = logging.getLogger("segserve")

_NOTHING: Final = Access(schemes=())


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What passes reach beside the API's objects.

    `logs` reads pods' logs, `cache` is the folder for fetched golden sets, `notifier` tells people of rollouts. Where
    `prometheus` is an address, gateways' counts come from there. `artifacts` is the folder below which golden sets may
    be read as files.
    """

    logs: PodLogs
    cache: Path
    notifier: Notifier
    metrics: RolloutMetrics
    prometheus: str = ""
    artifacts: Path | None = None


@dataclass(slots=True)
class PoolCache:
    """What passes over one pool keep between them: what was decoded already, and the last seconds' evidence."""

    check_runner: BackgroundCheckRunner
    announcer: PoolAnnouncer
    rollout_cache: RolloutCache = field(default_factory=RolloutCache)
    false_alarms: dict[str, int] = field(default_factory=dict)
    known: KnownModels = field(default_factory=KnownModels)
    parsed: Parsed = field(default_factory=Parsed)
    decoded: Decoded = field(default_factory=Decoded)
    plans: dict[str, TrafficPlan] = field(default_factory=dict)


class PoolReconciler:
    """Makes passes. `clock` returns Unix time in seconds."""

    def __init__(
        self, api: Api, view: View, defaults: Defaults, outside: Dependencies, clock: Callable[[], float]
    ) -> None:
        self._api = api
        self._view = view
        self._targets = PoolContexts(view, defaults)
        self._outside = outside
        self._clock = clock
        self._kept: dict[PoolKey, PoolCache] = {}

    async def run(self, key: PoolKey) -> ReconcileResult:
        """Make a pass over a pool; raises what a call to the API raised."""
        kept = self._kept.get(key) or self._begin(key)
        store = ClusterStore(self._api, self._view, self._targets, key, kept.parsed, kept.known, self._clock)
        fleet = ClusterFleet(self._api, self._view, self._targets, key, kept.decoded, kept.known, self._clock)
        traffic = self._traffic(key, kept.plans)
        bundles = ClusterBundles(self._api, self._outside.logs, key)
        asked = (kept.check_runner, bundles, kept.announcer, kept.rollout_cache)
        actions = await Service(store, fleet, traffic, self._clock, *asked).run_once()
        for action in actions:
            log.info("%s/%s: %s", key.namespace, key.pool, brief(action))
        models = await store.models()
        states = {model.name: model.status.rollout for model in models if model.status.rollout is not None}
        self._outside.metrics.look(key.namespace, key.pool, states, kept.rollout_cache.records)
        for model, test in kept.rollout_cache.self_tests.items():
            new = test.false_alarms - kept.false_alarms.get(model, 0)
            self._outside.metrics.self_tested(
                key.namespace, key.pool, model, false_alarms=max(new, 0), dispersion=test.dispersion
            )
            kept.false_alarms[model] = test.false_alarms
        return ReconcileResult(len(actions), next_due_s(models, self._clock()))

    def _begin(self, key: PoolKey) -> PoolCache:
        plans: dict[str, TrafficPlan] = {}
        traffic = self._traffic(key, plans)
        tools = CheckContext(
            InternalGateway(traffic.internal_url),
            self._outside.cache,
            ClusterResources(self._view, key),
            self._clock,
            base=partial(self._base, key),
            access=partial(self._access, key),
        )
        announcer = PoolAnnouncer(self._outside.notifier, key.namespace, partial(self._told, key), self._clock)
        return self._kept.setdefault(key, PoolCache(BackgroundCheckRunner(tools), announcer, plans=plans))

    def _traffic(self, key: PoolKey, plans: dict[str, TrafficPlan]) -> ClusterTraffic:
        prometheus = self._outside.prometheus
        return ClusterTraffic(self._api, self._view, self._targets, key, plans, prometheus=prometheus)

    def _base(self, key: PoolKey) -> str | None:
        target = self._targets.target(key)
        return base_of(target) if target is not None else None

    def _access(self, key: PoolKey) -> Access:
        target = self._targets.target(key)
        return access_without_secrets(target, self._outside.artifacts) if target is not None else _NOTHING

    def _told(self, key: PoolKey) -> tuple[Target, ...]:
        target = self._targets.target(key)
        return targets(target.spec, key.namespace) if target is not None else ()

    def wanted(self, key: PoolKey) -> bool:
        """Tell whether anything of a pool is left; what was kept of one that is gone is let go."""
        wanted = key in self._view.pools()
        if not wanted and key in self._kept:
            self._kept.pop(key).check_runner.ask(())
            self._outside.metrics.look(key.namespace, key.pool, {}, {})
        return wanted

    async def close(self) -> None:
        """Give up what is asked, and tell people what they were not told yet."""
        for kept in self._kept.values():
            await kept.check_runner.close()
        await self._outside.notifier.aclose()
