"""Reasons why pods do not serve, as reported by their Deployment, the scheduler, the kubelet, the runtime and the node
controller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_operator.adapters.kube.pods import is_cut_off, is_terminating
from segserve_operator.core.failure import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# Every container waits for these reasons while it starts.
_PASSING: Final = frozenset({"ContainerCreating", "PodInitializing"})


def pod_failure(deployment: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> FailureReason | None:
    """Return the first failure, in the order in which pods come up; None if there is none, or none is reported yet."""
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


def _conditions(item: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (item.get("status") or {}).get("conditions") or ()


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()
