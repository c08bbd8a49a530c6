"""Drift of a pool's child objects from their manifests, and its repair."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from segserve_common.api_errors import ApiError, ConflictError, InvalidError, NotFoundError
from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import CHILDREN, GATEWAY_ROUTES
from segserve_operator.adapters.kube.api import NotLeaderError
from segserve_operator.adapters.kube.drift import covers, overlay
from segserve_operator.adapters.kube.pods import is_terminating

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey, View


_KINDS: Final = {(kind.api_version, kind.name): kind for kind in (*CHILDREN, *GATEWAY_ROUTES)}

# Controllers write an object's status a few times after each edit of it.
_ATTEMPTS: Final = 5

_log = logging.getLogger(__name__)


def kind_of(manifest: Json) -> Kind:
    """Return the kind of a rendered manifest."""
    return _KINDS[manifest["apiVersion"], manifest["kind"]]


def find_drift(view: View, key: PoolKey, manifests: Iterable[Json]) -> Iterator[tuple[Json, Json | None]]:
    """Yield each manifest whose object is missing, terminating or different, with the object, None if missing.

    What admission made of our last write of the same manifest does not differ: it would do the same to the next one.
    """
    for manifest in manifests:
        kind = kind_of(manifest)
        live = view.get(kind, key.namespace, manifest["metadata"]["name"])
        if live is None or is_terminating(live) or not _agrees(view, live, manifest):
            yield manifest, live


async def apply_differing(
    api: Api, view: View, key: PoolKey, manifests: Iterable[Json], *, fenced: bool = False
) -> int:
    """Apply the manifests that differ, and return their number.

    With `fenced` an object is written only if it is unchanged since the view read it. The first error ends it, and
    names the object.
    """
    differing = list(find_drift(view, key, manifests))
    for manifest, live in differing:
        kind, name = kind_of(manifest).name, manifest["metadata"]["name"]
        try:
            applied = await _put(api, key, manifest, live if fenced else None)
        except NotLeaderError:
            raise
        except ApiError as error:
            raise error.about(f"{kind} {name}") from error
        if not covers(applied, manifest):
            _log.warning("%s %s: admission changes fields that segserve sets; they stay so", kind, name)
            view.answers[applied["metadata"]["uid"]] = _answer(applied, manifest)
    return len(differing)


async def _put(api: Api, key: PoolKey, manifest: Json, fence: Json | None) -> Json:
    """Write the fields of a manifest, and return the object; other writers' fields and list items stay."""
    kind, name = kind_of(manifest), manifest["metadata"]["name"]
    try:
        return await api.apply(kind, key.namespace, _at_version(fence, manifest))
    except InvalidError as error:
        _log.info("%s %s is not to be applied over what is there: %s", kind.name, name, error)
        refusal = error
    # Another client set an alternative to a field of ours, such as a second handler of a probe.
    attempts = _ATTEMPTS if fence is None else 1
    while True:
        attempts -= 1
        try:
            live = await api.get(kind, key.namespace, name)
        except NotFoundError:
            raise refusal from None
        patch = {"metadata": {}, **merge_patch(live, overlay(live, manifest))}
        try:
            return await api.patch(kind, key.namespace, name, _at_version(fence or live, patch))
        except ConflictError:
            if attempts == 0:
                raise


def _agrees(view: View, live: Json, manifest: Json) -> bool:
    # Comparing all objects of all groups was a quarter of a pass, and hardly any changes from one pass to the next.
    uid = live["metadata"]["uid"]
    former = view.covering.get(uid)
    if former is not None and former[0] is live and former[1] == manifest:
        return True
    if not covers(live, manifest):
        answer = view.answers.get(live["metadata"]["uid"])
        return answer is not None and answer == _answer(live, manifest)
    view.covering[uid] = live, manifest
    return True


def _answer(live: Json, manifest: Json) -> tuple[str, str]:
    """Return digests of a manifest and of what an object has in its place."""
    content = {name: value for name, value in live.items() if name not in ("metadata", "status")}
    own = {
        part: {name: (live["metadata"].get(part) or {}).get(name) for name in manifest["metadata"].get(part, ())}
        for part in ("labels", "annotations")
    }
    return json_digest(manifest, 16), json_digest([content, own], 16)


def _at_version(live: Json | None, manifest: Json) -> Json:
    """Return a manifest or patch with the resourceVersion of `live` as a precondition, without one if that is None."""
    if live is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}


def merge_patch(present: Mapping[str, Any], desired: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that makes `present` equal to `desired`, which has no nulls; empty if they are equal."""
    # In a merge patch null removes a field.
    patch: dict[str, Any] = dict.fromkeys(present.keys() - desired.keys())
    for key, value in desired.items():
        if key not in present:
            patch[key] = value
        elif isinstance(value, dict) and isinstance(present[key], dict):
            if inner := merge_patch(present[key], value):
                patch[key] = inner
        elif present[key] != value:
            patch[key] = value
    return patch
