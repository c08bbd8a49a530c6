"""Parsed pools of the view, as the context from which their objects are rendered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segserve_common.kube.kinds import POOLS
from segserve_operator.adapters.kube.objects import PoolContext
from segserve_operator.adapters.kube.pool_guard import is_leaving
from segserve_operator.api.triton_pool import Server
from segserve_operator.core.failure import HOST_PATH_REFUSED, FailureReason
from segserve_operator.mapping.reading import read_pool

if TYPE_CHECKING:
    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.objects import Defaults
    from segserve_operator.adapters.kube.view import PoolKey, View
    from segserve_operator.api.triton_pool import TritonPoolSpec
    from segserve_operator.core.rollout.chain import Sign


@dataclass(slots=True)
class PoolContexts:
    """Reads pools from the view, and caches the parsed spec of each until its generation changes."""

    view: View
    defaults: Defaults
    sign: Sign | None = None
    """What signs the decisions of rollouts, if the operator has a key."""
    _cache: dict[PoolKey, tuple[int, PoolContext, FailureReason | None]] = field(default_factory=dict)

    def resource(self, key: PoolKey) -> Json | None:
        """Return the pool's resource, None if there is none or it is being deleted and nothing keeps it."""
        resource = self.view.get(POOLS, key.namespace, key.pool)
        return None if resource is None or is_leaving(self.view, key, resource) else resource

    def get(self, key: PoolKey) -> PoolContext | None:
        """Return the context of a pool, None if there is no such pool.

        Raises `SpecError` if its spec cannot be parsed.
        """
        resource = self.resource(key)
        if resource is None:
            self._cache.pop(key, None)
            return None
        uid, generation = resource["metadata"]["uid"], resource["metadata"]["generation"]
        cached = self._cache.get(key)
        # A pool that was deleted and created again may have the same generation, but not the same uid.
        if cached is None or (cached[0], cached[1].uid) != (generation, uid):
            pool, ignored = read_pool(resource, key.pool)
            spec, refused = _within(pool.spec, self.defaults)
            cached = (generation, PoolContext(key.namespace, key.pool, uid, spec, self.defaults), refused or ignored)
            self._cache[key] = cached
        return cached[1]

    def ignored(self, key: PoolKey) -> FailureReason | None:
        """Return which fields of a pool's spec this release does not know, None if it knows all."""
        return self._cache[key][2] if self.get(key) is not None else None


def _within(spec: TritonPoolSpec, defaults: Defaults) -> tuple[TritonPoolSpec, FailureReason | None]:
    """Return a spec without what the operator allows to no pool, and what that is."""
    if spec.server.cache.host_path is None or defaults.allow_host_path:
        return spec, None
    cache = Server().cache
    message = f"cache.hostPath is not used: the chart's allowHostPath is false; servers get a cache of {cache.size}"
    server = spec.server.model_copy(update={"cache": cache})
    return spec.model_copy(update={"server": server}), FailureReason(HOST_PATH_REFUSED, message)
