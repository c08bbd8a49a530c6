"""What `describe` says of a model on any platform: spec, roles, its rollout, conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import yaml

from segserve.cli.progress import age

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve.platforms.port import Json, Platform

DECISIONS: Final = 10


def record_of_latest(here: Platform, model: Json) -> Json | None:
    """Return the record of a model's latest rollout; None where there is none."""
    name = ((model.get("status") or {}).get("rollout") or {}).get("name")
    return here.rollout(name) if name else None


def described(manifest: Json, record: Json | None = None) -> str:
    """Return what a model's own resource says, and the `record` of its latest rollout."""
    status = manifest.get("status") or {}
    spec = yaml.safe_dump({"metadata": manifest["metadata"], "spec": manifest["spec"]}, sort_keys=False)
    lines = [spec.rstrip("\n"), f"url: {status.get('url', '')}", "roles:"]
    for role, holder in status.get("roles", {}).items():
        failed = f"  {holder['reason']}: {holder['message']}" if holder.get("reason") else ""
        where = f" in group {holder['group']}" if holder.get("group") else ""
        lines.append(f"  {role:<10} {holder['revision']}{where} since {age(holder['since'])}{failed}")
    if status.get("rollout"):
        lines += _rollout(status["rollout"], (record or {}).get("status") or {})
    lines.append("conditions:")
    for found in status.get("conditions", []):
        lines.append(f"  {found['type']:<17} {found['status']:<8} {age(found['lastTransitionTime']):>4}  {_why(found)}")
    return "\n".join(lines)


def _rollout(at: Json, record: Json) -> Iterator[str]:
    paused = ", paused" if at.get("paused") else ""
    yield f"rollout: {at['name']}"
    yield f"  {at['revision']} is {at['phase']} at {at.get('weight', 0)} %{paused} since {age(at['since'])}  {_why(at)}"
    for verdict in record.get("verdicts") or ():
        skipped = " (skipped)" if verdict["gate"] in (at.get("skippedGates") or ()) else ""
        yield f"  gate {verdict['gate']:<15} {verdict['outcome']:<9} {_why(verdict)}{skipped}"
    for made in (record.get("decisions") or ())[-DECISIONS:]:
        yield f"  {age(made['at']):>4}  {made['phase']:<11} {made['weight']:>3} %  {_why(made)} (by {made['actor']})"


def _why(said: Json) -> str:
    return ": ".join(filter(None, (said.get("reason"), said.get("message"))))
