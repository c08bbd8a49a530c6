"""The past of a model and its pool on a cluster: events, owners of fields, and states of pods."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from segserve_common.kube.kinds import EVENTS, MODELS, PODS, POOLS
from segserve_common.kube.names import COMPONENT_LABEL, FIELD_MANAGER, GATEWAY, GROUP_LABEL, MANAGED_LABELS, POOL_LABEL
from segserve_platform.platforms.cluster.logs import short_name
from segserve_platform.platforms.port import PlatformEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from segserve_platform.platforms.cluster.context_client import ContextClient
    from segserve_platform.platforms.port import Json


def of_model(client: ContextClient, model: Json, pool: Json | None) -> list[PlatformEvent]:
    """Return what is known, in no order; `pool` is None if there is none of the name that the model says."""
    resources = [("model", MODELS, model), *([("pool", POOLS, pool)] if pool is not None else [])]
    found: list[PlatformEvent] = []
    for word, kind, resource in resources:
        name = resource["metadata"]["name"]
        found += _events(client, f"{word} {name}", resource)
        found += _edits(f"{word} {name}", client.managed_fields(kind, name))
    labels = MANAGED_LABELS if pool is None else {**MANAGED_LABELS, POOL_LABEL: pool["metadata"]["name"]}
    roles = (model.get("status") or {}).get("roles") or {}
    groups = {holder.get("group") for holder in roles.values()}
    for pod in client.list(PODS, labels=labels)[0]:
        own = pod["metadata"]["labels"]
        if own.get(COMPONENT_LABEL) == GATEWAY:
            found += _pod(f"gateway {short_name(pod)}", pod)
        elif own.get(GROUP_LABEL) in groups:
            found += _pod(f"server {own[GROUP_LABEL]}/{short_name(pod)}", pod)
    return found


def _events(client: ContextClient, about: str, resource: Json) -> Iterator[PlatformEvent]:
    metadata = resource["metadata"]
    fields = f"involvedObject.name={metadata['name']},involvedObject.uid={metadata['uid']}"
    for event in client.list(EVENTS, fields=fields)[0]:
        at = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
        yield PlatformEvent(
            unix_s(at),
            about,
            event.get("type") == "Warning",
            str(event.get("reason") or ""),
            str(event.get("message") or ""),
            int(event.get("count") or 1),
        )


def _edits(about: str, owners: Iterable[Json]) -> Iterator[PlatformEvent]:
    """Yield the last edit of each tool that owns fields of the specification."""
    for owner in owners:
        specified = (owner.get("fieldsV1") or {}).get("f:spec")
        if specified and not owner.get("subresource") and owner.get("manager") != FIELD_MANAGER:
            fields = ", ".join(sorted(name.removeprefix("f:") for name in specified if name != "."))
            message = f"by {owner['manager']}, which owns {fields}"
            yield PlatformEvent(unix_s(owner.get("time")), about, False, "Edited", message)


def _pod(about: str, pod: Json) -> Iterator[PlatformEvent]:
    status = pod.get("status") or {}
    if started := status.get("startTime"):
        yield PlatformEvent(unix_s(started), about, False, "Started", "the pod was started")
    for container in status.get("containerStatuses") or ():
        ended = (container.get("lastState") or {}).get("terminated")
        if ended:
            message = f"{container['name']} ended: {ended.get('reason', '')} (exit code {ended.get('exitCode')})"
            restarts = int(container.get("restartCount", 0))
            yield PlatformEvent(unix_s(ended.get("finishedAt")), about, True, "Restarted", message, restarts)


def unix_s(time_text: str | None) -> float:
    """Return the Unix time in seconds of an RFC 3339 time; now without one."""
    return time.time() if time_text is None else datetime.fromisoformat(time_text).timestamp()
