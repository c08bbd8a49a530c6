"""Drift of a pool's child objects from their manifests, and its repair."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import InvalidError
from segserve_common.kube.kinds import CHILDREN, OLD_DISRUPTION_BUDGETS
from segserve_operator.adapters.kube.drift import covers
from segserve_operator.adapters.kube.pods import is_terminating

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey, View

_KINDS: Final = {(kind.api_version, kind.name): kind for kind in (*CHILDREN, OLD_DISRUPTION_BUDGETS)}

_log = logging.getLogger(__name__)


def kind_of(manifest: Json) -> Kind:
    """Return the kind of a rendered manifest."""
    return _KINDS[manifest["apiVersion"], manifest["kind"]]


def find_drift(view: View, key: PoolKey, manifests: Iterable[Json]) -> Iterator[tuple[Json, Json | None]]:
    """Yield each manifest whose object is missing, terminating or different, with the object, None if missing."""
    for manifest in manifests:
        live = view.get(kind_of(manifest), key.namespace, manifest["metadata"]["name"])
        if live is None or is_terminating(live) or not covers(live, manifest):
            yield manifest, live


async def apply_differing(
    api: Api, view: View, key: PoolKey, manifests: Iterable[Json], *, fenced: bool = False
) -> None:
    """Apply the manifests that differ; with `fenced` only if the object is unchanged since the view read it."""
    for manifest, live in list(find_drift(view, key, manifests)):
        await _put(api, key, manifest, live if fenced else None)


async def _put(api: Api, key: PoolKey, manifest: Json, fence: Json | None) -> None:
    kind, desired = kind_of(manifest), _at_version(fence, manifest)
    try:
        applied = await api.apply(kind, key.namespace, desired)
    except InvalidError as error:
        _log.info("%s %s is not to be applied over what is there: %s", kind.name, manifest["metadata"]["name"], error)
    else:
        if covers(applied, manifest):
            return
        desired = _at_version(fence and applied, manifest)
    # Server-side apply keeps other writers' list items and their order; a merge patch replaces the whole list.
    await api.patch(kind, key.namespace, manifest["metadata"]["name"], desired)


def _at_version(live: Json | None, manifest: Json) -> Json:
    """Return the manifest with the resourceVersion of `live` as a precondition, without one if that is None."""
    if live is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
