"""How far a model has come, read from its conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# A server that is being started again is not the change's fault, nor is a cluster's room or its registry.
PASSING_REASONS: Final = frozenset(
    {
        "NoServer",
        "ContainerCannotRun",
        "CrashLoopBackOff",
        "CreateContainerError",
        "Error",
        "ErrImagePull",
        "FailedCreate",
        "ImagePullBackOff",
        "QuotaExceeded",
        "Unschedulable",
    }
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether the newest spec serves, can no longer come to serve by itself, or is on its way."""

    serves: bool
    failed: bool
    text: str


def progress(manifest: Mapping[str, Any]) -> Progress:
    """Return how far the newest spec of a model has come."""
    status = manifest.get("status") or {}
    if status.get("observedGeneration") != manifest["metadata"]["generation"]:
        return Progress(serves=False, failed=False, text="waiting for the platform")
    degraded = condition(manifest, "Degraded")
    if degraded["status"] == "True" and degraded["reason"] not in PASSING_REASONS:
        return Progress(serves=False, failed=True, text=_said(degraded))
    ready, moving = condition(manifest, "Ready"), condition(manifest, "Progressing")
    # While callers are being sent to the newest revision, the one before it still answers some.
    if ready["status"] == "True" and ready["reason"] != "Switching" and moving["status"] == "False":
        return Progress(serves=True, failed=False, text=ready.get("message", ""))
    newest = next((said for said in (degraded, moving) if said["status"] == "True"), ready)
    return Progress(serves=False, failed=False, text=_said(newest))


def _said(condition: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (condition["reason"], condition.get("message"))))


def condition(manifest: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of a resource; one that was never observed is Unknown."""
    conditions = (manifest.get("status") or {}).get("conditions", [])
    unknown = {"type": kind, "status": "Unknown", "reason": "Waiting"}
    return next((found for found in conditions if found["type"] == kind), unknown)
