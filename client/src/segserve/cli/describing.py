"""What `describe` says of a model on any platform: spec, roles, conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from segserve.cli.progress import age

if TYPE_CHECKING:
    from segserve.cli.platform import Json


def described(manifest: Json) -> str:
    """Return what a model's own resource says."""
    status = manifest.get("status") or {}
    spec = yaml.safe_dump({"metadata": manifest["metadata"], "spec": manifest["spec"]}, sort_keys=False)
    lines = [spec.rstrip("\n"), f"url: {status.get('url', '')}", "roles:"]
    for role, holder in status.get("roles", {}).items():
        failed = f"  {holder['reason']}: {holder['message']}" if holder.get("reason") else ""
        where = f" in group {holder['group']}" if holder.get("group") else ""
        lines.append(f"  {role:<10} {holder['revision']}{where} since {age(holder['since'])}{failed}")
    lines.append("conditions:")
    for found in status.get("conditions", []):
        text = f"{found['reason']}: {found['message']}" if found.get("message") else found["reason"]
        lines.append(f"  {found['type']:<17} {found['status']:<8} {age(found['lastTransitionTime']):>4}  {text}")
    return "\n".join(lines)
