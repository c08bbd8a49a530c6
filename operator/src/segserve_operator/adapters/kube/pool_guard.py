"""A guard of pools that have models: one that is deleted serves on until they are gone, or until it is told to go."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import NotFoundError
from segserve_common.kube.kinds import MODELS, POOLS
from segserve_common.kube.names import FORCE_DELETE, POOL_FINALIZER
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.core.world.observed import ObservedCondition

if TYPE_CHECKING:
    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey, View

_NAMED: Final = 5


def is_leaving(view: View, key: PoolKey, resource: Json) -> bool:
    """Tell whether a pool is being deleted and nothing keeps it: its objects go with it."""
    return is_terminating(resource) and not _is_kept(view, key, resource)


def kept_condition(view: View, key: PoolKey, resource: Json) -> ObservedCondition | None:
    """Return the condition Progressing of a pool that serves on although it is being deleted; None of others."""
    if not is_terminating(resource):
        return None
    names = sorted(model["metadata"]["name"] for model in view.of_pool(MODELS, key))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    text = (
        f"it is being deleted, and serves until its models are gone: {', '.join(names[:_NAMED])}{more}; the annotation "
        f"{FORCE_DELETE}=true deletes it now"
    )
    return ObservedCondition("Progressing", "True", "HasModels", text)


async def keep_guard(api: Api, view: View, key: PoolKey) -> int:
    """Give a pool its finalizer, or take it off where nothing keeps the pool; return the number of writes.

    Raises `ConflictError` if the pool changed meanwhile.
    """
    resource = view.get(POOLS, key.namespace, key.pool)
    if resource is None:
        return 0
    present = resource["metadata"].get("finalizers", [])
    others = [name for name in present if name != POOL_FINALIZER]
    if is_terminating(resource):
        wanted = present if _is_kept(view, key, resource) else others
    else:
        wanted = [*others, POOL_FINALIZER]
    if sorted(wanted) == sorted(present):
        return 0
    metadata = {"finalizers": wanted, "resourceVersion": resource["metadata"]["resourceVersion"]}
    with suppress(NotFoundError):
        await api.patch(POOLS, key.namespace, key.pool, {"metadata": metadata})
    return 1


def _is_kept(view: View, key: PoolKey, resource: Json) -> bool:
    metadata = resource["metadata"]
    forced = (metadata.get("annotations") or {}).get(FORCE_DELETE) == "true"
    return POOL_FINALIZER in metadata.get("finalizers", ()) and not forced and bool(view.of_pool(MODELS, key))
