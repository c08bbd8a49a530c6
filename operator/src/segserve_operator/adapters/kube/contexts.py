"""Parsed pools of the view, as the context from which their objects are rendered."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import NotFoundError
from segserve_common.kube.kinds import MODELS, POOLS
from segserve_common.kube.names import FORCE_DELETE, POOL_FINALIZER
from segserve_operator.adapters.kube.objects import PoolContext
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.api.meta import UNSEEN, Problem, SpecError
from segserve_operator.api.triton_pool import Server
from segserve_operator.core.failure import HOST_PATH_REFUSED, FailureReason
from segserve_operator.core.world.observed import ObservedCondition
from segserve_operator.mapping.reading import read_pool
from segserve_operator.store_format import STORE_FORMAT

if TYPE_CHECKING:
    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.objects import Defaults
    from segserve_operator.adapters.kube.view import PoolKey, View
    from segserve_operator.api.triton_pool import TritonPoolSpec


_NAMED: Final = 5


class OtherFormatError(SpecError):
    """Raised for a pool of which another version of segserve wrote what is stored."""


@dataclass(slots=True)
class PoolContexts:
    """Reads pools from the view, and caches the parsed spec of each until its generation changes."""

    view: View
    defaults: Defaults
    _cache: dict[PoolKey, tuple[int, PoolContext, FailureReason | None]] = field(default_factory=dict)

    def resource(self, key: PoolKey) -> Json | None:
        """Return the pool's resource, None if it does not exist, or is being deleted and nothing keeps it."""
        resource = self.view.get(POOLS, key.namespace, key.pool)
        return None if resource is None or is_leaving(self.view, key, resource) else resource

    def get(self, key: PoolKey) -> PoolContext | None:
        """Return the context of a pool, None if there is no such pool.

        Raises `SpecError` if its spec cannot be parsed, `OtherFormatError` if what is stored has another format.
        """
        resource = self.resource(key)
        if resource is None:
            self._cache.pop(key, None)
            return None
        uid, generation = resource["metadata"]["uid"], resource["metadata"]["generation"]
        cached = self._cache.get(key)
        # A pool that was deleted and created again may have the same generation, but not the same uid.
        if cached is None or (cached[0], cached[1].uid) != (generation, uid):
            _check_format(resource, key.pool)
            spec, refused = _within(read_pool(resource, key.pool).spec, self.defaults)
            cached = (generation, PoolContext(key.namespace, key.pool, uid, spec, self.defaults), refused)
            self._cache[key] = cached
        return cached[1]

    def ignored(self, key: PoolKey) -> FailureReason | None:
        """Return which part of a pool's spec the operator does not allow, None if it allows all."""
        return self._cache[key][2] if self.get(key) is not None else None


def _check_format(resource: Json, pool: str) -> None:
    status = resource.get("status") or {}
    found = status.get("format")
    if status.get("observedGeneration", UNSEEN) != UNSEEN and found != STORE_FORMAT:
        shown = "it has no format" if found is None else f"its format is {found}"
        message = (
            f"another version of segserve wrote what is stored ({shown}, this one's is {STORE_FORMAT}): "
            "go back to that version, delete the models and the pool with it, then upgrade and apply them again"
        )
        raise OtherFormatError([Problem(pool, "status.format", message)])


def _within(spec: TritonPoolSpec, defaults: Defaults) -> tuple[TritonPoolSpec, FailureReason | None]:
    """Return a spec without what the operator allows to no pool, and what that is."""
    if spec.server.cache.host_path is None or defaults.allow_host_path:
        return spec, None
    cache = Server().cache
    message = f"cache.hostPath is not used: the chart's allowHostPath is false; servers get a cache of {cache.size}"
    server = spec.server.model_copy(update={"cache": cache})
    return spec.model_copy(update={"server": server}), FailureReason(HOST_PATH_REFUSED, message)


def is_leaving(view: View, key: PoolKey, resource: Json) -> bool:
    """Return whether a pool is being deleted and nothing keeps it: its objects go with it."""
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
