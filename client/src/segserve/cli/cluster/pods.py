"""States of pods and groups of pods: one word, and the cause if something is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segserve.platforms.cluster.logs import short_name
from segserve.platforms.port import Json
from segserve_operator.adapters.kube.pod_failures import trouble
from segserve_operator.core.failure import FailureReason


@dataclass(frozen=True, slots=True)
class PodState:
    """A name, a colour, a word, a note, and the failure if there is one."""

    name: str
    colour: str
    word: str
    note: str = ""
    trouble: FailureReason | None = None


def pod_state(pod: Json) -> PodState:
    """Return the state of a pod."""
    name, status = short_name(pod), pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    ready = sum(bool(each.get("ready")) for each in containers)
    total = len(pod.get("spec", {}).get("containers") or containers)
    if "deletionTimestamp" in pod["metadata"]:
        return PodState(name, "yellow", "going")
    failure = trouble(None, [pod])
    if failure is not None:
        return PodState(name, "red", f"{ready}/{total}", trouble=failure)
    restarts = sum(int(each.get("restartCount", 0)) for each in containers)
    again = f"restarted {restarts} time{'s' if restarts > 1 else ''}" if restarts else ""
    if is_ready(pod):
        return PodState(name, "green", "ready", again)
    return PodState(name, "yellow", f"{ready}/{total} {str(status.get('phase', 'Pending')).lower()}", again)


def group_state(deployment: Json | None, pods: Sequence[Json]) -> PodState:
    """Return the joint state of a Deployment's pods; `name` is empty."""
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    ready = sum(map(is_ready, staying))
    total = (deployment or {}).get("spec", {}).get("replicas", len(staying))
    refused = trouble(deployment, [])
    word = f"{ready}/{total} pod{'s' if total != 1 else ''}"
    if refused is not None:
        return PodState("", "red", word, trouble=refused)
    if deployment is None and not staying:
        return PodState("", "dim", "no pods")
    return PodState("", "green" if ready == total else "yellow", word)


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod is ready to receive requests."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
