"""One pass over one pool of the cluster: the service, over adapters that look at the shared view."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segserve_operator.adapters.kube.fleet import ClusterFleet, Decoded
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.adapters.kube.known_models import KnownModels
from segserve_operator.adapters.kube.store import ClusterStore, Parsed
from segserve_operator.adapters.kube.target import Targets
from segserve_operator.core.roles import next_due_s
from segserve_operator.service import Service, brief
from segserve_operator.worker import Pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.objects import Defaults
    from segserve_operator.adapters.kube.view import PoolKey, View

log = logging.getLogger("segserve")


@dataclass(slots=True)
class Kept:
    """What passes over one pool keep between them: nothing but what was decoded already."""

    known: KnownModels = field(default_factory=KnownModels)
    parsed: Parsed = field(default_factory=Parsed)
    decoded: Decoded = field(default_factory=Decoded)
    traffic: ClusterTraffic | None = None


class Passes:
    """Makes passes. `clock` returns Unix time in seconds."""

    def __init__(self, api: Api, view: View, defaults: Defaults, clock: Callable[[], float]) -> None:
        self._api = api
        self._view = view
        self._targets = Targets(view, defaults)
        self._clock = clock
        self._kept: dict[PoolKey, Kept] = {}

    async def run(self, key: PoolKey) -> Pass:
        """Make a pass over a pool; raises what a call to the API raised."""
        kept = self._kept.setdefault(key, Kept())
        if kept.traffic is None:
            kept.traffic = ClusterTraffic(self._api, self._view, self._targets, key)
        store = ClusterStore(self._api, self._view, self._targets, key, kept.parsed, kept.known, self._clock)
        fleet = ClusterFleet(self._api, self._view, self._targets, key, kept.decoded, kept.known, self._clock)
        actions = await Service(store, fleet, kept.traffic, self._clock).run_once()
        for action in actions:
            log.info("%s/%s: %s", key.namespace, key.pool, brief(action))
        return Pass(len(actions), next_due_s(await store.models(), self._clock()))

    def wanted(self, key: PoolKey) -> bool:
        """Tell whether anything of a pool is left; what was kept of one that is gone is let go."""
        wanted = key in self._view.pools()
        if not wanted:
            self._kept.pop(key, None)
        return wanted
