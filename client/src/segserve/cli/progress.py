"""How far a model has come, read from its conditions; the tables that show it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


COLUMNS: Final = ("NAME", "READY", "STABLE", "CANDIDATE", "PHASE", "WEIGHT", "SLO", "URL", "AGE")


def models_table(manifests: Iterable[Mapping[str, Any]], *, wide: bool = False) -> Table:
    """Return the models as a table with the resource's printer columns; never folded, as kubectl's."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in [*COLUMNS, "GROUP", "MESSAGE"] if wide else COLUMNS:
        table.add_column(name, no_wrap=True)
    for manifest in manifests:
        table.add_row(*_row(manifest, wide=wide))
    return table


def _row(manifest: Mapping[str, Any], *, wide: bool) -> list[str]:
    status = manifest.get("status") or {}
    roles = status.get("roles", {})
    ready = condition(manifest, "Ready")["status"]
    colour = {"True": "green", "False": "red"}.get(ready, "yellow")
    row = [
        manifest["metadata"]["name"],
        f"[{colour}]{ready}[/]",
        roles.get("stable", {}).get("revision", ""),
        _candidate(roles.get("candidate")),
        (status.get("rollout") or {}).get("phase", ""),
        str(status.get("weight", "")),
        _slo(status.get("slo")),
        status.get("url", ""),
        age(manifest["metadata"]["creationTimestamp"]),
    ]
    return [*row, roles.get("stable", {}).get("group", ""), progress(manifest).text] if wide else row


def _slo(said: str | None) -> str:
    colour = {"Met": "green", "Breached": "red"}.get(said or "", "yellow")
    return f"[{colour}]{said}[/]" if said else ""


def _candidate(candidate: Mapping[str, Any] | None) -> str:
    if candidate is None:
        return ""
    failed = candidate["state"] == "Failed"
    return (
        f"[red]{candidate['revision']} ({candidate['reason']})[/]" if failed else f"[yellow]{candidate['revision']}[/]"
    )


def age(time: str) -> str:
    """Return how long ago an RFC 3339 time was, as kubectl writes it: `45s`, `12m`, `3h`, `2d`."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"
