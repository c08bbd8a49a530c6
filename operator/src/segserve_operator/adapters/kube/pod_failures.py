"""Why pods do not come up: what their Deployment, the scheduler, the kubelet and the runtime say, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_operator.core.failure import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# A container waits for these as a matter of course.
_PASSING: Final = frozenset({"ContainerCreating", "PodInitializing"})
_QUOTA: Final = "exceeded quota"


def pod_failure(deployment: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]]) -> FailureReason | None:
    """Return the first cause found, None where all goes well or nothing is known yet."""
    causes = (*_refused(deployment), *_unscheduled(pods), *_waiting(pods), *_failed(pods))
    return causes[0] if causes else None


def _refused(deployment: Mapping[str, Any] | None) -> Iterator[FailureReason]:
    for said in _conditions(deployment or {}):
        if said["type"] == "ReplicaFailure" and said["status"] == "True":
            message = said.get("message", "")
            reason = "QuotaExceeded" if _QUOTA in message else said.get("reason", "FailedCreate")
            yield FailureReason(reason, message)


def _unscheduled(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    for pod in pods:
        for said in _conditions(pod):
            if said["type"] == "PodScheduled" and said["status"] == "False" and said.get("reason") == "Unschedulable":
                yield FailureReason("Unschedulable", f"pod {pod['metadata']['name']}: {said.get('message', '')}")


def _waiting(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    for pod in pods:
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting") or {}
            reason = waiting.get("reason")
            if reason and reason not in _PASSING:
                ended = container.get("lastState", {}).get("terminated") or {}
                why = waiting.get("message") or ended.get("message") or ""
                if ended:
                    why = f"{why} (exit code {ended.get('exitCode')}, {ended.get('reason', 'Error')})"
                named = f"container {container['name']} of pod {pod['metadata']['name']}"
                yield FailureReason(reason, f"{named}, image {container.get('image', '')!r}: {why}")


def _failed(pods: Iterable[Mapping[str, Any]]) -> Iterator[FailureReason]:
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") == "Failed":
            text = f"pod {pod['metadata']['name']}: {status.get('message') or 'it ended'}"
            yield FailureReason(status.get("reason") or "PodFailed", text)


def _conditions(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (found.get("status") or {}).get("conditions") or ()


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()
