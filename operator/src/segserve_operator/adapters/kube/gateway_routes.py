"""A pool's routes of the Gateway API, kept equal to what the pool asks for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from segserve_common.kube.kinds import GATEWAY_ROUTES
from segserve_operator.adapters.kube.children import apply_differing, kind_of
from segserve_operator.adapters.kube.objects.gateway_routes import route_objects
from segserve_operator.adapters.kube.pods import is_terminating

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.view import PoolKey, View

_log = logging.getLogger(__name__)


async def keep_routes(api: Api, view: View, contexts: PoolContexts, key: PoolKey) -> int:
    """Apply a pool's routes, delete those that it asks for no longer, and return the number of writes.

    On a cluster that has no Gateway API nothing is written, and a pool that asks for routes is told in the log.
    """
    context = contexts.get(key)
    if context is None:
        return 0  # they go with their owner
    wanted = route_objects(context)
    if not set(GATEWAY_ROUTES) <= set(view.kinds):
        if wanted:
            _log.warning("%s/%s: the cluster had no Gateway API (v1) when the operator began", key.namespace, key.pool)
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
