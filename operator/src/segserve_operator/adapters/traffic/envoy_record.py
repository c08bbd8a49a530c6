"""The record of the plan that Envoy's files were rendered from, by the versions of these files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from segserve_operator.adapters.local.files import write_private
from segserve_operator.adapters.traffic.envoy_admin import Versions
from segserve_operator.core.traffic import TrafficPlan

PLANS: Final = TypeAdapter(TrafficPlan)


def write_plan(path: Path, versions: Versions, plan: TrafficPlan) -> None:
    """Record that files of these versions are what `plan` comes to."""
    write_private(path, json.dumps({"versions": asdict(versions), "plan": PLANS.dump_python(plan, mode="json")}))


def read_plan(path: Path) -> tuple[Versions, TrafficPlan] | None:
    """Return what was recorded; None where that is nothing, or nothing that this version of segserve can read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return Versions(**found["versions"]), PLANS.validate_python(found["plan"])
    except (OSError, LookupError, ValueError, TypeError):
        return None
