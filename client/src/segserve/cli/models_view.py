"""Models as a table, and one model as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import yaml
from rich.table import Table

from segserve.platforms.port import Json, Platform
from segserve.platforms.waiting import condition, readiness

# Statuses are read as JSON, not as `SegmentationModelStatus`: a newer operator may have added fields, which the type
# rejects and which must not break `segserve get`.
COLUMNS: Final = ("NAME", "READY", "STABLE", "CANDIDATE", "PHASE", "WEIGHT", "SLO", "URL", "AGE")
DECISIONS: Final = 10


def models_table(manifests: Iterable[Mapping[str, Any]], *, wide: bool = False) -> Table:
    """Return a table with the resource's printer columns; lines are never folded, as in kubectl."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in [*COLUMNS, "GROUP", "MESSAGE"] if wide else COLUMNS:
        table.add_column(name, no_wrap=True)
    for manifest in manifests:
        table.add_row(*_row(manifest, wide=wide))
    return table


def _row(manifest: Mapping[str, Any], *, wide: bool) -> list[str]:
    status = manifest.get("status") or {}
    roles = status.get("roles", {})
    row = [
        manifest["metadata"]["name"],
        _coloured(condition(manifest, "Ready")["status"], {"True": "green", "False": "red"}),
        roles.get("stable", {}).get("revision", ""),
        _candidate(roles.get("candidate")),
        (status.get("rollout") or {}).get("phase", ""),
        str(status.get("weight", "")),
        _coloured(status.get("slo"), {"Met": "green", "Breached": "red"}),
        status.get("url", ""),
        age(manifest["metadata"]["creationTimestamp"]),
    ]
    return [*row, roles.get("stable", {}).get("group", ""), readiness(manifest).text] if wide else row


def _coloured(word: str | None, colours: Mapping[str, str]) -> str:
    return f"[{colours.get(word, 'yellow')}]{word}[/]" if word else ""


def _candidate(candidate: Mapping[str, Any] | None) -> str:
    if candidate is None:
        return ""
    if candidate["state"] == "Failed":
        return f"[red]{candidate['revision']} ({candidate['reason']})[/]"
    return f"[yellow]{candidate['revision']}[/]"


def age(time: str) -> str:
    """Return the time since an RFC 3339 time in kubectl's form: `45s`, `12m`, `3h`, `2d`."""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def latest_record(platform: Platform, model: Json) -> Json | None:
    """Return the record of a model's latest rollout, or None if there is none."""
    name = ((model.get("status") or {}).get("rollout") or {}).get("name")
    return platform.rollout(name) if name else None


def model_text(manifest: Json, record: Json | None = None) -> str:
    """Return a model's resource as text, with the `record` of its latest rollout."""
    status = manifest.get("status") or {}
    spec = yaml.safe_dump({"metadata": manifest["metadata"], "spec": manifest["spec"]}, sort_keys=False)
    lines = [spec.rstrip("\n"), f"url: {status.get('url', '')}", "roles:"]
    for role, holder in status.get("roles", {}).items():
        failure = f"  {holder['reason']}: {holder['message']}" if holder.get("reason") else ""
        group = f" in group {holder['group']}" if holder.get("group") else ""
        lines.append(f"  {role:<10} {holder['revision']}{group} since {age(holder['since'])}{failure}")
    if status.get("rollout"):
        lines += _rollout(status["rollout"], (record or {}).get("status") or {})
    lines.append("conditions:")
    for each in status.get("conditions", []):
        lines.append(f"  {each['type']:<17} {each['status']:<8} {age(each['lastTransitionTime']):>4}  {_why(each)}")
    return "\n".join(lines)


def _rollout(rollout: Json, record: Json) -> Iterator[str]:
    state = f"{rollout['phase']} at {rollout.get('weight', 0)} %{', paused' if rollout.get('paused') else ''}"
    yield f"rollout: {rollout['name']}"
    yield f"  {rollout['revision']} is {state} since {age(rollout['since'])}  {_why(rollout)}"
    for verdict in record.get("verdicts") or ():
        skipped = " (skipped)" if verdict["gate"] in (rollout.get("skippedGates") or ()) else ""
        yield f"  gate {verdict['gate']:<15} {verdict['outcome']:<9} {_why(verdict)}{skipped}"
    for decision in (record.get("decisions") or ())[-DECISIONS:]:
        when, weight = age(decision["at"]), decision["weight"]
        yield f"  {when:>4}  {decision['phase']:<11} {weight:>3} %  {_why(decision)} (by {decision['actor']})"


def _why(entry: Json) -> str:
    return ": ".join(filter(None, (entry.get("reason"), entry.get("message"))))
