"""Inputs of the decision about an update of servers: own settings, requests, windows, and other pools' updates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict
from zoneinfo import ZoneInfo

from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import DEPLOYMENTS
from segserve_common.kube.names import object_name
from segserve_operator.adapters.kube.drift import covers
from segserve_operator.adapters.kube.objects import server_template, template_digest
from segserve_operator.api.errors import SpecError
from segserve_operator.api.pool_update import MAX_REQUEST_LENGTH, UPDATE_ANNOTATION
from segserve_operator.core.world.observed import MAIN, UpdateClaim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.objects import PoolContext
    from segserve_operator.adapters.kube.view import PoolKey, View
    from segserve_operator.api.pool_update import UpdateWindow

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_NOT_IN_TEMPLATE: Final = frozenset({"service_account_annotations"})
_SHOWN: Final = 3


class OfferedUpdate(TypedDict):
    """The part of `PoolObserved` that is about updates."""

    settings: str
    request: str
    difference: str
    window_open: bool
    claims: tuple[UpdateClaim, ...]


def offered_update(view: View, contexts: PoolContexts, key: PoolKey, now_s: float) -> OfferedUpdate:
    """Return what decides about an update of a pool, whose context there must be."""
    context, resource = contexts.get(key), contexts.resource(key)
    assert context is not None
    assert resource is not None
    template = _template_status(resource)
    kept = template.get("digest", "")
    annotations = resource["metadata"].get("annotations") or {}
    return OfferedUpdate(
        settings=settings_digest(context),
        request=annotations.get(UPDATE_ANNOTATION, "")[:MAX_REQUEST_LENGTH],
        difference=_difference(view, context, f"{MAIN}-{kept}") if kept not in ("", template_digest(context)) else "",
        window_open=is_open(context.spec.update.window, now_s),
        claims=tuple(_claims(view, contexts, key, now_s)) if template.get("next") else (),
    )


def settings_digest(context: PoolContext) -> str:
    """Return a digest, of 8 hex digits, of what of the pool's own spec its servers are made from.

    Fields that equal their defaults are left out, so that a field added by a later release changes no digest.
    """

    def digest() -> str:
        server = context.spec.server.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude=set(_NOT_IN_TEMPLATE)
        )
        artifacts = context.spec.artifacts.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json_digest({"server": server, "artifacts": artifacts}, 8)

    return context.once("settings", digest)


def is_open(window: UpdateWindow | None, now_s: float) -> bool:
    """Return whether a window is open at a Unix time: none always is, one whose time zone is not known never."""
    if window is None:
        return True
    try:
        zone = ZoneInfo(window.time_zone)
    except (KeyError, ValueError, OSError):
        return False
    now = datetime.fromtimestamp(now_s, UTC)
    hour, minute = map(int, window.start.split(":"))
    today = now.astimezone(zone).replace(hour=hour, minute=minute, second=0, microsecond=0)
    for days_ago in range(window.duration.days + 2):
        start = today - timedelta(days=days_ago)
        on_day = not window.days or _DAYS[start.weekday()] in window.days
        if on_day and start.astimezone(UTC) <= now < start.astimezone(UTC) + window.duration:
            return True
    return False


def _claims(view: View, contexts: PoolContexts, key: PoolKey, now_s: float) -> Iterator[UpdateClaim]:
    for other in view.pools():
        resource = contexts.resource(other)
        if other == key or resource is None:
            continue
        template = _template_status(resource)
        following, since = template.get("next"), template.get("since")
        if following and since and _may_go_on(contexts, other, now_s):
            begun = view.get(DEPLOYMENTS, other.namespace, object_name(other.pool, f"{MAIN}-{following}")) is not None
            since_s = datetime.fromisoformat(since).timestamp()
            conditions = (resource.get("status") or {}).get("conditions") or ()
            stalled = any(each["type"] == "Stalled" and each["status"] == "True" for each in conditions)
            yield UpdateClaim(f"{other.namespace}/{other.pool}", other < key, begun, since_s, stalled)


def _may_go_on(contexts: PoolContexts, key: PoolKey, now_s: float) -> bool:
    try:
        context = contexts.get(key)
    except SpecError:
        return False
    if context is None or context.spec.update.paused:
        return False
    return is_open(context.spec.update.window, now_s)


def _template_status(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    return (resource.get("status") or {}).get("template") or {}


def _difference(view: View, context: PoolContext, group: str) -> str:
    """Return what of the pods of a group an operator would make otherwise now; empty if there are none."""
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
