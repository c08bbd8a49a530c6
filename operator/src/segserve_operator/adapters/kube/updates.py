"""Inputs of the decision about an update of servers: own settings, requests, and what the operator would change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import DEPLOYMENTS
from segserve_common.kube.names import object_name
from segserve_operator.adapters.kube.drift import covers
from segserve_operator.adapters.kube.objects import server_template, template_digest
from segserve_operator.api.pool_update import MAX_REQUEST_LENGTH, UPDATE_ANNOTATION
from segserve_operator.core.world.observed import MAIN, ServerUpdate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.objects import PoolContext
    from segserve_operator.adapters.kube.view import PoolKey, View

_NOT_IN_TEMPLATE: Final = frozenset({"service_account_annotations"})
_SHOWN: Final = 3


def offered_update(view: View, contexts: PoolContexts, key: PoolKey) -> ServerUpdate:
    """Return what decides about an update of a pool, whose context there must be."""
    context, resource = contexts.get(key), contexts.resource(key)
    assert context is not None
    assert resource is not None
    kept = ((resource.get("status") or {}).get("template") or {}).get("digest", "")
    annotations = resource["metadata"].get("annotations") or {}
    return ServerUpdate(
        context.spec.update,
        settings=settings_digest(context),
        request=annotations.get(UPDATE_ANNOTATION, "")[:MAX_REQUEST_LENGTH],
        difference=_difference(view, context, f"{MAIN}-{kept}") if kept not in ("", template_digest(context)) else "",
    )


def settings_digest(context: PoolContext) -> str:
    """Return a digest, of 8 hex digits, of the part of the pool's own spec that its servers are made from.

    Fields that equal their defaults are left out, so that a field added by a later release changes no digest.
    """

    def digest() -> str:
        server = context.spec.server.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude=set(_NOT_IN_TEMPLATE)
        )
        artifacts = context.spec.artifacts.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json_digest({"server": server, "artifacts": artifacts}, 8)

    return context.once("settings", digest)


def _difference(view: View, context: PoolContext, group: str) -> str:
    """Return the parts of a group's pods that an operator would make differently now; empty without any."""
    live = view.get(DEPLOYMENTS, context.namespace, object_name(context.pool, group))
    if live is None:
        return ""

    def difference() -> str:
        found = list(_differences(live["spec"]["template"], server_template(context, group), ""))
        further = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + further

    return context.once(("difference", group, live["metadata"]["generation"]), difference)


def _differences(live: Any, wanted: Json | list[Any] | Any, path: str) -> Iterator[str]:
    if covers(live, wanted):
        return
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key in wanted:
            yield from _differences(live.get(key), wanted[key], f"{path}.{key}" if path else key)
    elif isinstance(wanted, list) and isinstance(live, list) and len(live) == len(wanted):
        for index, (one, other) in enumerate(zip(live, wanted, strict=True)):
            name = other.get("name", index) if isinstance(other, dict) else index
            yield from _differences(one, other, f"{path}[{name}]")
    elif isinstance(wanted, str | int | float) and isinstance(live, str | int | float):
        yield f"{path}: {live} -> {wanted}"
    else:
        yield path
