"""One pool on the cluster as the adapters see it: its resource, typed, and what its objects are rendered from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segserve_common.kube.kinds import POOLS
from segserve_operator.adapters.kube.objects import PoolContext
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.api.loading import parse
from segserve_operator.api.triton_pool import TritonPool

if TYPE_CHECKING:
    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.objects import Defaults
    from segserve_operator.adapters.kube.view import PoolKey, View


@dataclass(slots=True)
class PoolContexts:
    """Reads pools from the view; what was read of one is kept until its spec changes."""

    view: View
    defaults: Defaults
    _read: dict[PoolKey, tuple[int, PoolContext]] = field(default_factory=dict)

    def resource(self, key: PoolKey) -> Json | None:
        """Return the pool's resource; None where there is none or it is being deleted."""
        found = self.view.get(POOLS, key.namespace, key.pool)
        return None if found is None or is_terminating(found) else found

    def get(self, key: PoolKey) -> PoolContext | None:
        """Return what the pool's objects are rendered from; None without a pool.

        Raises `SpecError` where its spec cannot be read.
        """
        found = self.resource(key)
        if found is None:
            return None
        uid, generation = found["metadata"]["uid"], found["metadata"]["generation"]
        known = self._read.get(key)
        if known is None or (known[0], known[1].uid) != (generation, uid):
            pool = parse({name: value for name, value in found.items() if name != "status"}, key.pool)
            assert isinstance(pool, TritonPool)
            known = (generation, PoolContext(key.namespace, key.pool, uid, pool.spec, self.defaults))
            self._read[key] = known
        return known[1]
