"""A dashboard as values, and as Grafana reads it, by Grafana's own builder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Kind: TypeAlias = Literal["timeseries", "stat", "state-timeline", "table"]
Builder: TypeAlias = timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel

TAG: Final = "segserve"
_SCHEMA: Final = 39  # Grafana 11.0; newer ones migrate it
_SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_KINDS: Final[Mapping[Kind, type[timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel]]] = {
    "timeseries": timeseries.Panel,
    "stat": stat.Panel,
    "state-timeline": statetimeline.Panel,
    "table": table.Panel,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture of some queries, each (PromQL, legend); `width` is of 24 columns, `top` the largest value drawn.

    From `alarming` on a value is red; where small values are bad, `alarming_below` says up to which. Axes begin at 0,
    unless the values are `signed`.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    description: str = ""
    width: int = 12
    height: int = 8
    top: float | None = None
    alarming: float | None = None
    alarming_below: float | None = None
    signed: bool = False

    def built(self, number: int) -> Builder:
        """Return Grafana's builder of it."""
        made = (
            _KINDS[self.kind]()
            .id(number)
            .title(self.title)
            .description(self.description)
            .unit(self.unit)
            .datasource(_SOURCE)
            .span(self.width)
            .height(self.height)
        )
        if not self.signed:
            made = made.min(0)
        if self.top is not None:
            made = made.max(self.top)
        if steps := self._steps():
            made = made.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        for place, (query, legend) in enumerate(self.queries):
            target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(chr(ord("A") + place))
            if self.kind == "table":
                target = target.instant().format(PromQueryFormat.TABLE)
            made = made.with_target(target.datasource(_SOURCE))
        return made

    def _steps(self) -> list[model.Threshold]:
        if self.alarming is not None:
            return [model.Threshold(None, "green"), model.Threshold(self.alarming, "red")]
        if self.alarming_below is not None:
            return [model.Threshold(None, "red"), model.Threshold(self.alarming_below, "green")]
        return []


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a heading, side by side in the order given: the widths of a line sum up to 24."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of rows. `variables` are (name, PromQL), each of which may use those before it.

    `numbers` are (name, label) of what whoever looks types in; they are 0 at first.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str], ...] = ()
    numbers: tuple[tuple[str, str], ...] = ()
    refresh: str = "30s"
    past: str = "now-1h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, from top to bottom."""
        return tuple(panel for row in self.rows for panel in row.panels)

    def text(self) -> str:
        """Return the JSON that Grafana reads."""
        made = (
            build.Dashboard(f"segserve / {self.title}")
            .uid(f"segserve-{self.name}")
            .tags([TAG])
            .editable()
            .refresh(self.refresh)
            .time(self.past, "now")
            .with_variable(build.DatasourceVariable("datasource").type("prometheus"))
            .link(_others())
        )
        for name, query in self.variables:
            made = made.with_variable(_variable(name, query))
        for name, label in self.numbers:
            made = made.with_variable(build.TextBoxVariable(name).label(label).default_value("0"))
        number = 0
        for row in self.rows:
            made = made.with_row(build.Row(row.title).id(number := number + 1))
            for panel in row.panels:
                made = made.with_panel(panel.built(number := number + 1))
        found = made.build()
        found.schema_version = _SCHEMA
        return json.dumps(json.loads(JSONEncoder().encode(found)), indent=2) + "\n"


def _others() -> build.DashboardLink:
    link = build.DashboardLink("segserve").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.as_dropdown(True).include_vars(True).keep_time(True)


def _variable(name: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .query({"query": query, "refId": name})
        .datasource(_SOURCE)
        .include_all(True)
        .multi(True)
        .all_value(".*")
        .current(model.VariableOption(text="All", value="$__all"))
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
