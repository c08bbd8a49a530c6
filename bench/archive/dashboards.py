"""Draws dashboards from a real run: a rollout of a revision that finds fewer coins, dark images, a server that ends.

    PYTHONPATH=tests python -m bench.archive.dashboards [--minutes 6] [on-call answers rollouts ...]

A platform of this machine serves the coins, a real Prometheus scrapes it and answers the queries of each panel over the
run. Grafana draws the same queries; this is matplotlib. Writes docs/images/dashboard-*.png, by default three of them.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from bench.coins import variant, write
from bench.platform import MODELS, ROOT, Running, platform
from bench.svg import GREY, plot_style
from charts.monitoring.dashboards import DASHBOARDS
from charts.monitoring.panels import Dashboard, Panel
from fakes.callers import SteadyCaller
from fakes.prometheus import ask, prometheus
from fakes.waiting import meanwhile, until

MODEL: Final = "coins-instances"
SLO: Final = {"errorPercent": 1, "p95Milliseconds": 2500}
POLICY: Final = {
    "steps": [{"weight": 20, "minDuration": "30s"}, {"weight": 50, "minDuration": "30s"}],
    "bakeTime": "30s",
}
PAUSE_S: Final = 0.2
DARK: Final = 0.35
EVENTS: Final = {"revision": 0.2, "dark": 0.65, "server ends": 0.85, "end": 1.0}
"""Shares of the run after which things happen."""
RATES: Final = re.compile(r"(\[|offset )(?:5|15|30)m\b")
"""Windows are for hours; this run takes minutes."""
SCRAPED_EVERY_S: Final = 5
STEP_S: Final = 2
COLUMNS: Final = 3
MOST_LINES: Final = 10
UNITS: Final = {"short": "", "percentunit": "%", "percent": "%", "reqps": "requests/s"}
"""Names of units in Grafana, and what it writes."""
COLOURS: Final = 64
"""A picture with as many is a third as large."""


def watched(**spec: object) -> dict[str, Any]:
    """Return the model whose answers change. Golden images would refuse the new revision."""
    model = variant(model=MODEL, slo=SLO, rollout=POLICY, **spec)
    del model["spec"]["golden"]
    return model


def photograph(light: float) -> bytes:
    """Return the example's photograph with a share of its light, as a PNG."""
    file = io.BytesIO()
    ImageEnhance.Brightness(Image.open(MODELS.parent / "coins.png")).enhance(light).save(file, "PNG")
    return file.getvalue()


def run(running: Running, folder: Path, run_s: float) -> None:
    """Let callers call, bring a revision that finds fewer coins, turn the light down, and end a server."""
    callers = SteadyCaller(running.url, ("coins", MODEL), photograph(1), PAUSE_S)
    started_s = time.monotonic()
    with meanwhile(callers.call):
        for event, share in EVENTS.items():
            time.sleep(max(0.0, started_s + share * run_s - time.monotonic()))
            if event == "revision":
                stages = [{"scoreThreshold": {"threshold": 0.94}}, {"nms": {"iouThreshold": 0.5}}, {"cropMasks": {}}]
                edited = write(folder / "edited.yaml", watched(postprocess=stages))
                running.segserve("apply", "-f", str(edited))
            elif event == "dark":
                callers.image = photograph(DARK)
            elif event == "server ends":
                for process in running.processes():
                    if process.name() == "tritonserver":
                        process.kill()


def series(url: str, query: str, begin_s: float, end_s: float) -> list[dict[str, Any]]:
    """Return what a dashboard's query gave over the run."""
    asked = RATES.sub(r"\g<1>1m", re.sub(r"\$\w+", ".*", query))
    data = {"query": asked, "start": begin_s, "end": end_s, "step": STEP_S}
    found = httpx.post(f"{url}/api/v1/query_range", data=data, timeout=60).raise_for_status().json()
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def legend(text: str, labels: dict[str, str]) -> str:
    """Return a legend with its labels' values, as Grafana writes it."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), text).strip(" /")


def draw(axes: Axes, panel: Panel, lines: list[tuple[str, NDArray[Any]]], run_minutes: float) -> None:
    """Draw the (minutes, values) of a panel's series, and a dotted line where something happens."""
    scale = 100 if panel.unit == "percentunit" else 1
    for name, (minutes, values) in lines[:MOST_LINES]:
        axes.plot(minutes, scale * values, label=name or None, linewidth=1.2, clip_on=False)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlim(0, run_minutes)
    if not panel.signed:
        # A line at 0 is to be seen, and one at the top is not to be hidden by the legend.
        largest = (panel.top and scale * panel.top) or max(scale * float(np.nanmax(points[1])) for _, points in lines)
        axes.set_ylim(-0.03 * (largest or 1), 1.25 * (largest or 1))
    for share in list(EVENTS.values())[:-1]:
        axes.axvline(share * run_minutes, color=GREY, linewidth=0.8, linestyle=":")
    axes.tick_params(labelsize=7)
    axes.set_ylabel(UNITS.get(panel.unit, panel.unit), fontsize=7)
    if any(name for name, _ in lines):
        axes.legend(fontsize=6, loc="best", framealpha=0.6)


def picture(dashboard: Dashboard, url: str, begin_s: float, end_s: float) -> None:
    """Write a dashboard's picture, without the panels that had nothing to show."""
    found: list[tuple[Panel, list[tuple[str, NDArray[Any]]]]] = []
    for panel in dashboard.panels:
        lines = []
        for query, text in panel.queries:
            for each in series(url, query, begin_s, end_s):
                times, values = np.array(each["values"], float).T
                values[~np.isfinite(values)] = np.nan  # 0 requests of 0
                gaps = np.flatnonzero(np.diff(times) > 1.5 * STEP_S) + 1  # nothing joins what was there twice
                times, values = np.insert(times, gaps, times[gaps]), np.insert(values, gaps, np.nan)
                if not np.isnan(values).all():
                    lines.append((legend(text, each["metric"]), np.array([(times - begin_s) / 60, values])))
        if lines and panel.kind != "table":
            found.append((panel, lines))
    with plot_style():
        rows = -(-len(found) // COLUMNS)
        figure = Figure(figsize=(13, 2.4 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).ravel()
        for axes, (panel, lines) in zip(grid, found, strict=False):
            draw(axes, panel, lines, (end_s - begin_s) / 60)
        for axes in grid[len(found) :]:
            axes.set_axis_off()
        figure.supxlabel("minutes", fontsize=8)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=90)
    small = Image.open(drawn).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(ROOT / f"docs/images/dashboard-{dashboard.name}.png", optimize=True)
    shown = [panel for panel, _ in found]
    empty = [panel.title for panel in dashboard.panels if panel not in shown]
    print(f"{dashboard.name}: {len(shown)} panels; nothing to show: {', '.join(empty) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6)
    by_name = {each.name: each for each in DASHBOARDS}
    parser.add_argument("dashboards", nargs="*", default=["answers", "on-call", "rollouts"], help=", ".join(by_name))
    arguments = parser.parse_args()
    wanted = [by_name[name] for name in arguments.dashboards]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        file = write(folder / "models.yaml", variant(), watched())
        with platform(file) as running:
            address = running.url.removeprefix("http://")
            with prometheus(folder, {address: {}}, SCRAPED_EVERY_S) as url:
                until(lambda: ask(url, "segserve_answers_total") and True, "Prometheus has scraped the platform")
                begin_s = time.time()
                run(running, folder, 60 * arguments.minutes)
                for dashboard in wanted:
                    picture(dashboard, url, begin_s, time.time())


if __name__ == "__main__":
    main()
