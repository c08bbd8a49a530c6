"""A pool's child objects: which of them differ from what they should be, and their repair."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from segserve_common.kube.errors import InvalidError
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
    """Return the kind of a manifest of ours."""
    return _KINDS[manifest["apiVersion"], manifest["kind"]]


def find_drift(view: View, key: PoolKey, manifests: Iterable[Json]) -> Iterator[tuple[Json, Json | None]]:
    """Yield each manifest that its object does not have all of, with that object, None where there is none."""
    for manifest in manifests:
        live = view.get(kind_of(manifest), key.namespace, manifest["metadata"]["name"])
        if live is None or is_terminating(live) or not covers(live, manifest):
            yield manifest, live


async def apply_differing(
    api: Api, view: View, key: PoolKey, manifests: Iterable[Json], *, fenced: bool = False
) -> None:
    """Make the objects that differ as they should be; `fenced`: only where one is still the one that was looked at."""
    for manifest, live in list(find_drift(view, key, manifests)):
        await _put(api, key, manifest, live if fenced else None)


async def _put(api: Api, key: PoolKey, manifest: Json, fence: Json | None) -> None:
    kind, wanted = kind_of(manifest), _as_of(fence, manifest)
    try:
        answer = await api.apply(kind, key.namespace, wanted)
    except InvalidError as error:
        _log.info("%s %s is not to be applied over what is there: %s", kind.name, manifest["metadata"]["name"], error)
    else:
        if covers(answer, manifest):
            return
        wanted = _as_of(fence and answer, manifest)
    # What others put into a list stays there when ours is applied, and an order does too: a patch replaces the whole.
    await api.patch(kind, key.namespace, manifest["metadata"]["name"], wanted)


def _as_of(live: Json | None, manifest: Json) -> Json:
    """Return a manifest that is only to change the object as it was then; any, where that is None."""
    if live is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
