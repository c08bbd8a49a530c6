"""Models as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from segserve.platforms.progress import condition, progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
