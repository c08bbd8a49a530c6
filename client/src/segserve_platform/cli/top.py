"""`segserve top`: how models and servers do now, as a table that is drawn again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segserve_platform.cli.options import (
    PlatformOptions,
    Prometheus,
    ReportOutput,
    metrics_source,
    seconds,
    with_platform_options,
)
from segserve_platform.cli.terminal import print_whole
from segserve_platform.platforms.activity import PROMETHEUS_WINDOW_S, WINDOW_S, ActivityWindow

INTERVAL: Final = "2s"
CLASSES: Final = 3
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDE: Final = 110
_COLUMNS: Final = ("MODEL", "REQ/S", "", "P50", "P95", "ERRORS", "ACTIVE", "CPU/REQ")


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last values as bars, the highest of which is the largest value."""
    shown = list(values)[-width:]
    largest = max(shown, default=0.0)
    if largest <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(int(value / largest * len(_BARS)), len(_BARS) - 1)] for value in shown)


class TopView(ActivityWindow):
    """Table of what models and servers did in the last seconds."""

    def drawn(self, width: int) -> Group:
        """Return the table, without what does not fit into the width."""
        models, servers = self.rows()
        wide = width >= _WIDE
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in (*_COLUMNS, *(("OBJECTS/S",) if wide else ())):
            numeric = name in _COLUMNS[1:2] + _COLUMNS[3:]
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if numeric else "left")
        for row in models:
            objects = ", ".join(f"{name} {rate:.1f}" for name, rate in list(row.objects_per_s.items())[:CLASSES])
            failed = Text(_percent(row.failed_ratio), style="red" if row.failed_ratio else "")
            table.add_row(
                row.model,
                f"{row.requests_per_s:.1f}",
                sparkline(self.rates[row.model], 20 if wide else 10),
                _milliseconds(row.p50_ms),
                _milliseconds(row.p95_ms),
                failed,
                f"{row.active:.0f}",
                _milliseconds(None if row.cpu_s_per_request is None else 1000 * row.cpu_s_per_request),
                *((objects,) if wide else ()),
            )
        parts = [
            f"CPU {'-' if servers.cpu_cores is None else f'{servers.cpu_cores:.2f}'} cores",
            f"memory {decimal(int(servers.memory_bytes))}",
            f"queue {_milliseconds(servers.queue_ms)}",
            *([] if servers.gpu_ratio is None else [f"GPU {_percent(servers.gpu_ratio)}"]),
        ]
        head = Text(f"servers: {', '.join(parts)}", style="bold")
        return Group(head, table) if models else Group(head, Text("no model has had a request yet", style="dim"))


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


@with_platform_options
def top(
    platform_options: PlatformOptions,
    interval: Annotated[
        str | None,
        typer.Option(help="Time between two looks. Default: 2s; with --once 12s, or 75s from a Prometheus."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what happens in one interval, and end.")] = False,
    prometheus: Prometheus = None,
    output: ReportOutput = "text",
) -> None:
    """Show how models and servers do now: requests, latencies, errors, CPU, memory, queues and what is found.

    The table is drawn again after each interval until Ctrl-C; `-o json` prints a line for each. On a cluster the
    numbers come from its Prometheus.
    """
    source, window_s = metrics_source(platform_options, prometheus), PROMETHEUS_WINDOW_S if prometheus else WINDOW_S
    interval_s = window_s if once and interval is None else max(seconds(interval or INTERVAL), 0.2)
    view, console = TopView(window_s), Console()
    view.add(source.snapshot())
    if output == "json" or once:
        while True:
            time.sleep(interval_s)
            view.add(source.snapshot())
            if output == "text":
                print_whole(console, view.drawn(console.width))
            else:
                typer.echo(json.dumps(_as_json(view)))
            if once:
                return
    with Live(view.drawn(console.width), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            time.sleep(interval_s)
            view.add(source.snapshot())
            live.update(view.drawn(console.width), refresh=True)


def _as_json(view: TopView) -> dict[str, Any]:
    models, servers = view.rows()
    before, now = view.snapshots[0], view.snapshots[-1]
    return {
        "at": round(now.at_s, 3),
        "seconds": round(now.at_s - before.at_s, 3),
        "models": [row.to_json() for row in models],
        "servers": servers.to_json(),
    }
