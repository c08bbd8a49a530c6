"""What pods tell of themselves: where they are, which containers run, what they reported."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.shards import unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_common.kube.kinds import Json

STALE_REPORTS: Final = 8
"""Reports of pods that are gone are removed once there are more."""


def is_terminating(found: Mapping[str, Any]) -> bool:
    """Tell whether an object is being deleted."""
    return "deletionTimestamp" in found["metadata"]


def address(pod: Mapping[str, Any]) -> str | None:
    """Return the pod's IP while it runs, also while it ends."""
    status = pod.get("status") or {}
    ip: str | None = status.get("podIP")
    return ip if ip and status.get("phase") == "Running" else None


def container_ready(pod: Mapping[str, Any], name: str) -> bool:
    """Tell whether the kubelet takes a container for ready."""
    return bool(_container(pod, name).get("ready"))


def container_runs(pod: Mapping[str, Any], name: str) -> bool:
    """Tell whether a container has a process."""
    return "running" in (_container(pod, name).get("state") or {})


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Tell whether the pod gets requests of its Service."""
    return _says_ready(pod) and not is_terminating(pod)


def is_cut_off(pod: Mapping[str, Any]) -> bool:
    """Tell whether the cluster takes the pod's node for lost: no kubelet would call ready containers an unready pod."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return bool(statuses) and all(status.get("ready") for status in statuses) and not _says_ready(pod)


def unready_for_s(pod: Mapping[str, Any], now_s: float) -> float:
    """Return for how long some container has not been ready; 0 where all are."""
    for said in _conditions(pod):
        if said["type"] == "ContainersReady" and said["status"] != "True":
            return now_s - datetime.fromisoformat(said["lastTransitionTime"]).timestamp()
    return 0.0


def reports_of(config_map: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the packed reports by pod."""
    return dict((config_map or {}).get("binaryData") or {})


def read_report(packed: str | None, pod: Mapping[str, Any]) -> Json | None:
    """Return a pod's own report; None where there is none, or one of another pod of that name."""
    if packed is None:
        return None
    try:
        report: Json = unpack(packed)
    except ValueError:
        return None
    return report if report.get("uid") == pod["metadata"]["uid"] else None


def _says_ready(pod: Mapping[str, Any]) -> bool:
    return any(said["type"] == "Ready" and said["status"] == "True" for said in _conditions(pod))


def _conditions(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return (pod.get("status") or {}).get("conditions") or []


def _container(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((status for status in found if status["name"] == name), {})
