"""Reads of pod objects: addresses, the state of containers, the reports that pods wrote, and why pods do not serve.

The reasons are reported by their Deployment, the scheduler, the kubelet, the runtime and the node controller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.shards import unpack
from segserve_operator.core.failure import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_REPORT_BYTES: Final = 2 * 2**20
"""Largest report that is read: one of 2,500 models has about 1 MB."""

MAX_REASON: Final = 600
# Every container waits for these reasons while it starts.
_PASSING: Final = frozenset({"ContainerCreating", "PodInitializing"})


def is_terminating(item: Mapping[str, Any]) -> bool:
    """Return whether an object is being deleted."""
    return "deletionTimestamp" in item["metadata"]


def address(pod: Mapping[str, Any]) -> str | None:
    """Return the pod's IP while it runs, also while it terminates."""
    status = pod.get("status") or {}
    ip: str | None = status.get("podIP")
    return ip if ip and status.get("phase") == "Running" else None


def container_ready(pod: Mapping[str, Any], name: str) -> bool:
    """Return whether the kubelet considers a container ready."""
    return bool(_container(pod, name).get("ready"))


def container_runs(pod: Mapping[str, Any], name: str) -> bool:
    """Return whether a container has a process."""
    return "running" in (_container(pod, name).get("state") or {})


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Return whether the pod's Service sends it requests."""
    return _has_ready_condition(pod) and not is_terminating(pod)


def is_cut_off(pod: Mapping[str, Any]) -> bool:
    """Return whether the cluster considers the pod's node lost."""
    # The node controller then marks the pod unready, and leaves the container statuses as the kubelet last wrote them.
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return bool(statuses) and all(status.get("ready") for status in statuses) and not _has_ready_condition(pod)


def unready_for_s(pod: Mapping[str, Any], now_s: float) -> float:
    """Return how long some container has not been ready, 0 if all are."""
    for condition in _conditions(pod):
        if condition["type"] == "ContainersReady" and condition["status"] != "True":
            return now_s - datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
    return 0.0


def reports_of(config_map: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the packed reports by pod."""
    return dict((config_map or {}).get("binaryData") or {})


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """Report of a gateway's sidecar: versions of shards by number, refusals, routes that wait for their requests."""

    shards: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    draining: tuple[tuple[str, str], ...] = ()
    """(model, group) of routes that are gone, and have requests."""


def read_report(packed: str | None, pod: Mapping[str, Any]) -> GatewayReport | None:
    """Return a gateway's report; None if it is missing, unreadable, or of a former pod of that name."""
    if packed is None:
        return None
    try:
        report = unpack(packed, MAX_REPORT_BYTES)
        if report["uid"] != pod["metadata"]["uid"]:
            return None
        draining = tuple((str(model), str(group)) for model, group, *_ in report.get("draining", ()))
        return GatewayReport(_texts(report.get("shards", {})), _texts(report.get("refused", {})), draining)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(text)[:MAX_REASON] for name, text in value.items()}


def _has_ready_condition(pod: Mapping[str, Any]) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in _conditions(pod))


def _conditions(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return (item.get("status") or {}).get("conditions") or []


def _container(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((status for status in statuses if status["name"] == name), {})


def pod_failure(deployment: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> FailureReason | None:
    """Return the first failure, in the order in which pods come up; None if no failure is reported."""
    causes = (*_refused(deployment), *_unscheduled(pods), *_waiting(pods), *_failed(pods), *_lost(pods))
    return causes[0] if causes else None


def _refused(deployment: Mapping[str, Any] | None) -> Iterator[FailureReason]:
    for condition in _conditions(deployment or {}):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = condition.get("message", "")
            reason = "QuotaExceeded" if "exceeded quota" in message else condition.get("reason", "FailedCreate")
            yield FailureReason(reason, message)


def _unscheduled(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    for pod in pods:
        for condition in _conditions(pod):
            unscheduled = condition["type"] == "PodScheduled" and condition["status"] == "False"
            if unscheduled and condition.get("reason") == "Unschedulable":
                yield FailureReason("Unschedulable", f"pod {pod['metadata']['name']}: {condition.get('message', '')}")


def _waiting(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    for pod in pods:
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting") or {}
            reason = waiting.get("reason")
            if reason and reason not in _PASSING:
                # A container in CrashLoopBackOff waits; only its last state says why it ended.
                terminated = container.get("lastState", {}).get("terminated") or {}
                why = waiting.get("message") or terminated.get("message") or ""
                if terminated:
                    why = f"{why} (exit code {terminated.get('exitCode')}, {terminated.get('reason', 'Error')})"
                title = f"container {container['name']} of pod {pod['metadata']['name']}"
                yield FailureReason(reason, f"{title}, image {container.get('image', '')!r}: {why}")


def _failed(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") == "Failed":
            text = f"pod {pod['metadata']['name']}: {status.get('message') or 'it ended'}"
            yield FailureReason(status.get("reason") or "PodFailed", text)


def _lost(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    # A pod that is being deleted has a successor, which is what the group waits for.
    for pod in pods:
        if is_cut_off(pod) and not is_terminating(pod):
            node = pod["spec"].get("nodeName")
            yield FailureReason("NodeLost", f"pod {pod['metadata']['name']}: node {node} no longer reports")


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()
