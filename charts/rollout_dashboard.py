"""Writes the Grafana dashboard of rollouts: `python -m charts.rollout_dashboard` from the repository's root."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["timeseries", "stat", "state-timeline"]

FILE: Final = Path(__file__).parent / "segserve/files/dashboards/rollouts.json"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
MODEL: Final = "namespace, pool, model"
CHOSEN: Final = 'namespace=~"$namespace",pool=~"$pool",model=~"$model"'
NAMED: Final = "{{namespace}}/{{model}}"
WIDTH: Final = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture of some queries, each (PromQL, legend); `width` is of 24 columns, `top` the largest value drawn."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    description: str = ""
    width: int = 12
    height: int = 8
    top: float | None = None

    def rendered(self, number: int, x: int, y: int) -> Json:
        """Return it as Grafana reads it."""
        defaults: Json = {"unit": self.unit, "min": 0}
        if self.top is not None:
            defaults["max"] = self.top
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                for place, (query, legend) in enumerate(self.queries)
            ],
        }


def of_rollouts(metric: str, *more: str) -> str:
    """Return a gauge of running rollouts: of two operators one leads, but both may remember."""
    return f"max by ({', '.join((MODEL, *more))}) (segserve_rollout_{metric}{{{CHOSEN}}})"


def counted(metric: str, *by: str) -> str:
    """Return by how much a counter of rollouts has grown in five minutes."""
    return f"sum by ({', '.join((MODEL, *by))}) (increase(segserve_rollout_{metric}{{{CHOSEN}}}[5m]))"


def by_role(recorded: str) -> str:
    """Return a recorded series of models and groups, by the role that each group's revision has now."""
    roles = f"max by ({MODEL}, group, role) (segserve_model_group{{{CHOSEN}}})"
    return f"sum by ({MODEL}, role) ({recorded}{{{CHOSEN}}} * on ({MODEL}, group) group_left (role) {roles})"


def quantile(share: float) -> str:
    """Return a quantile of latencies by role."""
    cluster = 'envoy_cluster_name=~".+/.+/infer/.+",namespace=~"$namespace",pool=~"$pool"'
    rate = f"rate(envoy_cluster_upstream_rq_time_bucket{{{cluster}}}[2m])"
    for label, group in (("model", 1), ("group", 2)):
        rate = f'label_replace({rate}, "{label}", "${group}", "envoy_cluster_name", "([^/]+)/([^/]+)/.+")'
    roles = f"max by ({MODEL}, group, role) (segserve_model_group{{{CHOSEN}}})"
    joined = f"{rate} * on ({MODEL}, group) group_left (role) {roles}"
    return f"histogram_quantile({share}, sum by (le, {MODEL}, role) ({joined}))"


PANELS: Final = (
    Panel("Rollouts under way", ((f"count({of_rollouts('weight')}) or vector(0)", "rollouts"),), kind="stat", width=6,
          height=4),
    Panel("Held", ((of_rollouts("held", "reason"), NAMED + " {{reason}}"),), kind="stat", width=6, height=4,
          description="They wait for a person, or for the end of an incident."),
    Panel("Bad requests", ((of_rollouts("bad_requests"), NAMED),), kind="stat", width=6, height=4,
          description="That went wrong because of the candidate, as far as can be told."),
    Panel("Age of the last look", ((of_rollouts("look_seconds"), NAMED),), unit="s", kind="stat", width=6, height=4,
          description="At the gateways' counts; every second while rollouts run."),
    Panel("Weight of the candidate", ((of_rollouts("weight"), NAMED),), unit="percent", top=100),
    Panel("Phases", ((of_rollouts("phase", "phase"), NAMED + " {{phase}}"),), kind="state-timeline"),
    Panel("Evidence by gate", ((of_rollouts("evidence", "gate"), NAMED + " {{gate}}"),), unit="percentunit", top=1,
          width=WIDTH, description="Against the candidate, as a share of its bound: at 100 % it is rolled back."),
    Panel("Requests", ((by_role("segserve:model_requests:rate2m"), NAMED + " {{role}}"),), unit="reqps"),
    Panel("Share of failed requests",
          ((f"{by_role('segserve:model_failures:rate2m')} / {by_role('segserve:model_requests:rate2m')}",
            NAMED + " {{role}}"),),
          unit="percentunit", description="By the server's fault; HTTP and gRPC."),
    Panel("p50", ((quantile(0.5), NAMED + " {{role}}"),), unit="ms"),
    Panel("p95", ((quantile(0.95), NAMED + " {{role}}"),), unit="ms"),
    Panel("Decisions", ((counted("decisions_total", "signal"), NAMED + " {{signal}}"),)),
    Panel("Quarantines and ends",
          ((counted("quarantines_total"), NAMED + " quarantined"),
           (counted("ends_total", "phase"), NAMED + " {{phase}}"))),
    Panel("Self-test: false alarms", ((counted("self_test_false_alarms_total"), NAMED),),
          description="Breaches of stable against itself."),
    Panel("Self-test: dispersion", ((of_rollouts("dispersion"), NAMED),),
          description="1 where failures are independent; bursts make it larger."),
)  # fmt: skip


def dashboard() -> Json:
    """Return the dashboard as Grafana reads it."""
    return {
        "uid": "segserve-rollouts",
        "title": "segserve / rollouts",
        "tags": ["segserve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_placed()),
    }


def _placed() -> list[Json]:
    found: list[Json] = []
    x = y = 0
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > WIDTH:
            x, y = 0, y + PANELS[number - 2].height
        found.append(panel.rendered(number, x, y))
        x += panel.width
    return found


def _variables() -> list[Json]:
    chosen, found = "", [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    for name in ("namespace", "pool", "model"):
        found.append(_variable(name, f"label_values(segserve_model_group{f'{{{chosen}}}' if chosen else ''}, {name})"))
        chosen += f'{"," if chosen else ""}{name}=~"${name}"'
    return found


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n")
